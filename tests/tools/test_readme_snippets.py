"""What the READMEs show runs: every snippet of Python, and every command line as far as its parsing and its config."""

import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from lowbit.cli.program import Group

ROOT = Path(__file__).resolve().parent.parent.parent
README = sorted(path for path in ROOT.glob("*/README.md") if (path.parent / "pyproject.toml").exists())
LONGEST = {"core": 40}  # lines of a snippet, of a whole method; of other packages 20
MADE = {"core": ("rotate/checkpoint.pth.tar", "rotate/metrics.jsonl", "rotate/result.json")}
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.S)


def blocks(readme: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(readme.read_text(encoding="utf-8")) if language in languages]


@pytest.mark.parametrize("readme", README, ids=lambda path: path.parent.name)
def test_snippet_runs(readme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snippets = blocks(readme, "python")
    assert snippets, f"{readme.parent.name}/README.md shows no use from Python"
    monkeypatch.chdir(tmp_path)
    for snippet in snippets:
        most = LONGEST.get(readme.parent.name, 20)
        assert len([line for line in snippet.splitlines() if line.strip()]) <= most
        exec(compile(snippet, str(readme), "exec"), {"__name__": "snippet"})
    assert sorted(name for name in MADE.get(readme.parent.name, ()) if not (tmp_path / name).exists()) == []


def programs() -> dict[str, Group]:
    """The console scripts of all packages."""
    found = {}
    for project in sorted(ROOT.glob("*/pyproject.toml")):
        for name, place in tomllib.loads(project.read_text())["project"].get("scripts", {}).items():
            module, _, attribute = place.partition(":")
            found[name] = getattr(importlib.import_module(module), attribute).__self__
    return found


def command_lines(readme: Path, names: set[str]) -> Iterator[list[str]]:
    """The words of each line of a program of ours, behind `uv run`, `python -m` and launchers."""
    for text in blocks(readme, "", "sh", "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            starts = [at for at, word in enumerate(words) if word in names and words[at + 1 : at + 2] != ["/"]]
            if starts and (starts[0] == 0 or words[starts[0] - 1] in ("run", "-m")):
                yield words[starts[0] :]


LINES = [(path, words) for path in [ROOT / "README.md", *README] for words in command_lines(path, set(programs()))]


def test_there_are_lines() -> None:
    assert {words[0] for _, words in LINES} >= {"bsq", "ssql", "us3l", "s2bnn", "sqakd"} and len(LINES) > 40


@pytest.mark.parametrize(("readme", "words"), LINES, ids=[" ".join(words[:2]) for _, words in LINES])
def test_command_line_is_understood(readme: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def path(self: click.Path, value: Any, param: object, ctx: object) -> Path:
        return Path(value)  # files of an example need not be there

    monkeypatch.setattr(click.Path, "convert", path)
    name, *rest = words
    group = programs()[name]
    command = group.commands[rest[0]] if rest and not rest[0].startswith("-") else group
    context = command.make_context(" ".join(words[:2]), rest[1:] if command is not group else rest)
    config, overrides = context.params.get("name"), context.params.get("overrides", ())
    if config is not None and config.removeprefix("./").startswith("configs/"):
        importlib.import_module(f"{name}.config").read_config(rest[0], config, overrides)
