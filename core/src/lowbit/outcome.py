"""`Outcome`: what a command made, for a program that calls it as a function (no torch here).

A run's folder and its figures are noted where they are written. Nothing is kept unless somebody listens: the functions
of `lowbit.functions` do, a command line does not.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Outcome:
    """What one command made.

    Attributes:
        command: of the program, with its name.
        folder: of the run; None: nothing was written.
        figures: what `result.json` or `report.json` holds; of a dry run its plan. Accuracies in percent.
        names: of the last and of the best checkpoint in the folder.
    """

    command: str
    folder: Path | None = None
    figures: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, str] = ("", "")

    @property
    def files(self) -> dict[str, Path]:
        """Every file of the folder by its name there."""
        if self.folder is None:
            return {}
        found = (path for path in sorted(self.folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
        return {path.relative_to(self.folder).as_posix(): path for path in found}

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint of the run, for `lowbit.load` and for further commands; None: it wrote none."""
        return self.files.get(self.names[0])

    @property
    def best(self) -> Path | None:
        """The checkpoint with the best figure; None: the command keeps none."""
        return self.files.get(self.names[1])


_listening: ContextVar[Outcome | None] = ContextVar("listening", default=None)


@contextmanager
def listen(outcome: Outcome) -> Iterator[Outcome]:
    """What is noted inside, also by nested commands, goes into the outcome."""
    token = _listening.set(outcome)
    try:
        yield outcome
    finally:
        _listening.reset(token)


def note_folder(path: Path, names: tuple[str, str]) -> None:
    """A run opened its folder; of runs in one another (a demo's) the outer one's counts."""
    outcome = _listening.get()
    if outcome is not None and outcome.folder is None:
        outcome.folder, outcome.names = path, names


def note_figures(figures: Mapping[str, Any]) -> None:
    """A run has results; the last ones count."""
    outcome = _listening.get()
    if outcome is not None:
        outcome.figures = dict(figures)
