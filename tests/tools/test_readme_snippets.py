"""What the READMEs show runs: every snippet of Python, and every command line as far as its parsing and its config."""

import importlib
from pathlib import Path
from typing import Any

import click
import pytest
from readmes import README, ROOT, blocks, command_of, programs, shell_lines

LONGEST = {"core": 40}  # lines of a snippet, of a whole method; of other packages 20
MADE = {"core": ("rotate/checkpoint.pth.tar", "rotate/metrics.jsonl", "rotate/result.json")}


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


READ = [
    (path, command_of(line, set(programs()))) for path in [ROOT / "README.md", *README] for line in shell_lines(path)
]
LINES = [(path, words) for path, words in READ if words]


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
