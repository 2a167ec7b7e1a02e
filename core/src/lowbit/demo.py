"""What the demos of all methods share: one process, a folder that the next demo may replace, stages, the verdict.

A demo is useful if the trained backbone beats a random-weight one by `NEEDED` points under the same probe.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lowbit.errors import InputError, Stopped
from lowbit.options import RunOptions

NEEDED = 10.0  # points between the trained and the random-weight backbone


def prepare(options: RunOptions, folder: Path) -> RunOptions:
    """The options of a demo: its folder (by default `folder`), where an earlier demo is replaced; one thread.

    So small a net gains nothing from more threads, and the tables are then the same for any number of cores.

    Raises:
        InputError: several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"the demo is one process, not WORLD_SIZE={os.environ['WORLD_SIZE']}: start it without a launcher"
        )
    torch.set_num_threads(1)
    where = options.output or folder
    return replace(options, output=where, overwrite=options.overwrite or is_demo(where), resume=None)


def is_demo(folder: Path) -> bool:
    """Whether the folder holds a demo."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("command") == "demo"
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def told_when_stopped() -> Iterator[None]:
    """Its stages could be resumed, the whole cannot: a stop says so."""
    try:
        yield
    except Stopped as stop:
        raise Stopped("the demo was stopped; started again it begins anew") from stop


def run_stage(path: Path, what: str, stage: Callable[[RunOptions], object], options: RunOptions) -> dict[str, Any]:
    """Run one command into a folder of its own; returns its `result.json`, if it has one.

    Args:
        path: the folder, which may hold the stage of an earlier demo. What the command says goes to `record.txt` there.
        what: to be told on stderr.
        stage: the command.
        options: of the demo.
    """
    sys.stderr.write(f"{what} …\n")
    record = StringIO()
    with redirect_stdout(record):
        stage(replace(options, output=path, overwrite=True))
    (path / "record.txt").write_text(record.getvalue(), encoding="utf-8")
    result = path / "result.json"
    return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}


def verdict(probe: str, trained: float, random: float, needed: float) -> tuple[bool, str]:
    """Whether a trained backbone is useful, and a sentence of it.

    Args:
        probe: what both figures are of.
        trained: percent.
        random: of a random-weight backbone under the same probe.
        needed: points between them.
    """
    useful = trained - random >= needed
    said = f"{probe}: trained backbone {trained:.2f} %, random weights {random:.2f} %"
    return useful, said + ("" if useful else f": less than {needed:g} points apart, so this demo shows nothing")
