"""The house's own rules: direction of imports, versions in lock-step, nothing private committed."""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
LAYERS = runpy.run_path(str(ROOT / "tools/check_layers.py"))


def test_layers_are_in_order() -> None:
    assert LAYERS["check"](ROOT) == []


@pytest.mark.parametrize(
    ("package", "layer", "module", "allowed"),
    [
        ("lowbit", "train", "lowbit.data.loader", True),
        ("lowbit", "train", "lowbit.evaluate.classify", False),
        ("lowbit", "data", "lowbit.train", False),
        ("lowbit", "losses", "lowbit.train.protocol", False),
        ("lowbit", "quant", "bsq.layers", False),
        ("bsq", "run", "ssql.run", False),
        ("bsq", "run", "lowbit.train.loop", True),
    ],
)
def test_a_breach_is_seen(package: str, layer: str, module: str, allowed: bool) -> None:
    assert (LAYERS["breach"](package, layer, module) is None) == allowed


def projects() -> dict[str, dict]:
    files = [ROOT / "pyproject.toml", *sorted(ROOT.glob("*/pyproject.toml"))]
    return {path.parent.name if path.parent != ROOT else ".": tomllib.loads(path.read_text()) for path in files}


def test_versions_are_in_lock_step() -> None:
    import lowbit

    found = {name: project["project"]["version"] for name, project in projects().items()}
    assert set(found.values()) == {lowbit.__version__}
    for name, project in projects().items():
        if name not in (".", "core"):
            assert f"lowbit=={lowbit.__version__}" in project["project"]["dependencies"]
            source = (ROOT / name / "src" / name / "__init__.py").read_text()
            assert f'__version__ = "{lowbit.__version__}"' in source


def test_each_method_has_its_extra_and_its_place_in_the_workspace() -> None:
    root = projects()["."]
    methods = {name for name in projects() if name not in (".", "core")}
    assert set(root["tool"]["uv"]["workspace"]["members"]) == methods | {"core"}
    assert set(root["project"]["optional-dependencies"]) == methods | {"all"}


@pytest.mark.parametrize("name", [name for name in projects() if name != "."])
def test_what_an_index_shows_of_a_package(name: str) -> None:
    """Licence, people, words to search by; its README is shown away from the repository, so no link is relative."""
    project = projects()[name]["project"]
    assert project["license"] == "Apache-2.0" and project["license-files"] == ["LICENSE"] and project["authors"]
    assert (ROOT / name / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
    assert len(project["keywords"]) > 3 and "Typing :: Typed" in project["classifiers"]
    assert all(url.startswith("https://") for url in project["urls"].values())
    package = project["name"].removeprefix("lowbit-")
    assert (ROOT / name / "src" / package / "py.typed").exists()
    text = re.sub(r"```.*?```", "", (ROOT / name / project["readme"]).read_text(encoding="utf-8"), flags=re.S)
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text)  # pictures lie beside the README
    assert not [link for link in links if not link.startswith(("https://", "#"))]


def test_nothing_private_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.splitlines()]
    assert not [path for path in files if path.name == "uv.lock"]
    home = re.compile(r"(?<![\w./])/(?:work|root|home)/\w")
    texts = [path for path in files if path.suffix in {".py", ".md", ".toml", ".yaml", ".json"} and path.is_file()]
    assert not [path.name for path in texts if home.search(path.read_text(encoding="utf-8"))]


def test_source_files_are_one_idea_each() -> None:
    folders = ("core/src", "bsq/src", "ssql/src", "us3l/src", "s2bnn/src", "sqakd/src", "tools")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    assert not {path.name: n for path in sources if (n := len(path.read_text().splitlines())) > 300}
