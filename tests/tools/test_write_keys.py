"""The page of all keys is what the tree says, and the list of configs what is shipped."""

import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowbit.config.files import describe
from lowbit.config.tree import leaves
from lowbit.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools/write_keys.py"))


@pytest.mark.parametrize("method", TOOL["METHODS"])
def test_the_page_of_keys_is_up_to_date_and_names_every_key(method: str) -> None:
    page = (ROOT / method / "KEYS.md").read_text(encoding="utf-8")
    assert page == TOOL["page"](method), "python tools/write_keys.py"
    tree = __import__(f"{method}.config", fromlist=["Config"]).Config
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(leaves(tree))


@pytest.mark.parametrize("method", TOOL["METHODS"])
def test_the_list_of_configs_names_all_that_are_shipped(method: str) -> None:
    cli = __import__(f"{method}.cli", fromlist=["cli"]).cli
    lines = CliRunner().invoke(cli, ["configs"]).stdout.splitlines()
    shipped = ROOT / method / "src" / method
    assert sorted(line.split()[0] for line in lines) == sorted(
        path.relative_to(shipped).as_posix() for path in (shipped / "configs").rglob("*.yaml")
    )
    assert all(len(line.split()) > 3 and line.endswith(".") for line in lines)


def test_a_config_without_a_header_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# What it is.\n# More.\nSEED: 1\n")
    assert describe(tmp_path) == {"a.yaml": "What it is."}
    (tmp_path / "b.yaml").write_text("SEED: 1\n")
    with pytest.raises(InputError, match=r"b\.yaml has no header"):
        describe(tmp_path)
