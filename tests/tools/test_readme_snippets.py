"""Each package's README shows its use from Python in under 15 lines, and what it shows runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
README = sorted(path for path in ROOT.glob("*/README.md") if (path.parent / "pyproject.toml").exists())


@pytest.mark.parametrize("readme", README, ids=lambda path: path.parent.name)
def test_snippet_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = re.findall(r"```python\n(.*?)```", readme.read_text(encoding="utf-8"), re.S)
    assert snippets, f"{readme.parent.name}/README.md shows no use from Python"
    monkeypatch.chdir(tmp_path)
    for snippet in snippets:
        assert len([line for line in snippet.splitlines() if line.strip()]) < 15
        exec(compile(snippet, str(readme), "exec"), {"__name__": "snippet"})
