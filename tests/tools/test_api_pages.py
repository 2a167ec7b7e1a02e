"""The API pages build without a warning, by the command that CONTRIBUTING.md names."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.heavy
def test_api_pages_build_without_a_warning(tmp_path: Path) -> None:
    found = re.search(r"`uv run pdoc ([^`]+)`", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert found, "CONTRIBUTING.md names no command"
    words = [str(tmp_path) if word == "API" else word for word in shlex.split(found[1])]
    done = subprocess.run([sys.executable, "-W", "error", "-m", "pdoc", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    packages = [path.parent.name for path in ROOT.glob("*/pyproject.toml") if path.parent.name != "core"]
    pages = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.html")}
    assert pages >= {f"{name}.html" for name in ("lowbit", *packages)} | {"bsq/network.html", "lowbit/functions.html"}
    assert 'id="to_bits_"' in (tmp_path / "bsq/network.html").read_text(encoding="utf-8")
