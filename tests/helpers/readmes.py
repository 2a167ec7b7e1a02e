"""What the READMEs show: their code blocks, and the command lines of our programs in them; not a test itself."""

import importlib
import re
import shlex
import tomllib
from functools import cache
from pathlib import Path

from lowbit.cli.program import Group

ROOT = Path(__file__).resolve().parent.parent.parent
README = sorted(path for path in ROOT.glob("*/README.md") if (path.parent / "pyproject.toml").exists())
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.S)


def blocks(readme: Path, *languages: str) -> list[str]:
    return [text for language, text in BLOCK.findall(readme.read_text(encoding="utf-8")) if language in languages]


@cache
def programs() -> dict[str, Group]:
    """The console scripts of all packages."""
    found = {}
    for project in sorted(ROOT.glob("*/pyproject.toml")):
        for name, place in tomllib.loads(project.read_text())["project"].get("scripts", {}).items():
            module, _, attribute = place.partition(":")
            found[name] = getattr(importlib.import_module(module), attribute).__self__
    return found


def shell_lines(readme: Path) -> list[str]:
    """The lines of all blocks without a language, which are those for a shell; continued ones joined, no comments."""
    text = "".join(blocks(readme, "", "sh", "bash")).replace("\\\n", " ")
    lines = (re.sub(r"\s#.*", "", line).strip() for line in text.splitlines())
    return [re.sub(r" +", " ", line) for line in lines if line]


def command_of(line: str, names: set[str]) -> list[str]:
    """The words of a line of a program of ours, behind `uv run`, `python -m` and launchers; of another line none."""
    words = [word for word in shlex.split(line) if word != "..."]
    starts = [at for at, word in enumerate(words) if word in names and words[at + 1 : at + 2] != ["/"]]
    return words[starts[0] :] if starts and (starts[0] == 0 or words[starts[0] - 1] in ("run", "-m")) else []
