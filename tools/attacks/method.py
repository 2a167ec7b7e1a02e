"""What is said of a method that is attacked: the command lines that make its files, and those that read them.

Its lines are cheap ones: a net of a few thousand weights, the digits, a few pictures. `FILE` stands for a file and
`OUT` for a folder.
"""

import contextlib
import importlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

NET, SLIMMABLE = "tiny_of_releases", "tiny_slimmable"  # of tests/releases/tiny.py
FEW = "--limit-train 64 --limit-eval 32"


@dataclass(frozen=True)
class Method:
    """One program.

    Attributes:
        program: its name, and that of its package.
        makes: {name of a file: (command that makes it below OUT, where it lies there)}, in this order.
        reads: {part of a file's name: commands that read FILE and write nothing}.
        resumes: {file: the command that goes on with it}; without --resume and --output.
        lines: a good line of each command, for bad options to be added to.
        configs: good lines that take --config and KEY=VALUE.
        folders: lines that read pictures from the folder DATA and write nothing.
        slices: its nets may be the leading channels of what a file holds.
        module: where its commands are; "": the package's `cli`.
    """

    program: str
    makes: dict[str, tuple[str, str]]
    reads: dict[str, tuple[str, ...]]
    resumes: dict[str, str]
    lines: tuple[str, ...]
    configs: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    slices: bool = False
    module: str = ""

    @property
    def group(self) -> click.Group:
        """Its commands."""
        found: click.Group = importlib.import_module(self.module or f"{self.program}.cli").cli
        return found


class Seeds:
    """Good files of methods.

    Args:
        folder: where they are, once `make` has made them.
        methods: those that are attacked.
    """

    def __init__(self, folder: Path, methods: Sequence[Method]) -> None:
        self.folder, self.methods = folder, methods

    def of(self, ending: str) -> list[Path]:
        """Those whose names end so, in the order of their names."""
        return sorted(self.folder.glob(f"*{ending}"))

    def line(self, text: str, **places: object) -> list[str]:
        """A command line, cut at blanks, its names of good files made paths, FILE and OUT what is given."""
        words = []
        for word in text.split():
            before, equals, after = word.rpartition("=")
            path = self.folder / after
            word = f"{before}{equals}{path}" if after and path.is_file() else word
            for name, put in places.items():
                word = word.replace(name, str(put))
            words.append(word)
        return words


def run(method: Method, line: list[str]) -> None:
    """One command line in this process; leaves with its exit code where that is not 0."""
    try:
        method.group.main(line, prog_name=method.program)
    except SystemExit as end:
        if end.code:
            raise


def make(method: Method, seeds: Seeds) -> None:
    """The files of a method, and beside each that is resumed the state at its run's end (`.end`)."""
    os.chdir(seeds.folder)
    with (seeds.folder / f"{method.program}.log").open("w") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        for name, (line, found) in method.makes.items():
            out = seeds.folder / f"{name}.run"
            run(method, seeds.line(line, OUT=out))
            (out / found).rename(seeds.folder / name)
        for name, line in method.resumes.items():
            out = seeds.folder / f"{name}.on"
            run(method, [*seeds.line(line), "--resume", str(seeds.folder / name), "--output", str(out)])
            (out / method.makes[name][1]).rename(seeds.folder / f"{name}.end")
            with contextlib.suppress(OSError):
                (seeds.folder / name).chmod(0o444)
