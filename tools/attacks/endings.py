"""Runs that are told to stop at any moment, or whose streams nobody reads: nothing of their result may change."""

import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random

import torch
from tools.attacks.checkpoints import content, unequal
from tools.attacks.method import Method, Seeds, run
from tools.attacks.outcome import Attempt, Kind

from lowbit.errors import EXIT_STOPPED, STOP_SIGNALS
from lowbit.train import signals

LONGEST = 0.8  # seconds until a signal comes; a run takes half a second


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """That of endings."""

    def ending(rng: Random, folder: Path) -> Attempt:
        method = rng.choice([method for method in seeds.methods if method.resumes])
        name = rng.choice([*method.resumes])
        out = folder.parent / "out"
        line = [*seeds.line(method.resumes[name]), "--output", str(out), "--save-every", str(rng.choice((1, 2, 3)))]
        if rng.random() < 0.5:
            said = rng.choice([*STREAMS])
            act: Callable[[], None] = lambda: unread(method, line, STREAMS[said])  # noqa: E731
        else:
            after, number = rng.uniform(0, LONGEST), rng.choice(STOP_SIGNALS)
            said = f"{signal.Signals(number).name} after {after:.2f} s"
            act = lambda: stopped(method, line, number, after)  # noqa: E731

        def check(result: object) -> str | None:
            now = torch.load(out / method.makes[name][1], map_location="cpu", weights_only=True)
            return unequal(now["state_dict"], content(seeds.folder / f"{name}.end")["state_dict"])

        return Attempt(act, f"{method.program} {line[0]}, {said}", len(said), check, must="accept")

    return (Kind("ending", ending),)


def stopped(method: Method, line: list[str], number: int, after: float) -> None:
    """A run that gets a signal, and, where it stopped, the run that goes on."""
    for one in STOP_SIGNALS:
        signal.signal(one, signal.SIG_DFL)  # `nohup` may have had them ignored
    signals.install()
    timer = threading.Timer(after, os.kill, (os.getpid(), number))
    timer.start()
    try:
        run(method, line)
    except SystemExit as end:
        if end.code != EXIT_STOPPED:
            raise
        signals.clear()
        run(method, [*line, "--resume", "auto"])
    finally:
        timer.cancel()
        signals.ignore()


def unread(method: Method, line: list[str], spoil: Callable[[], None]) -> None:
    """A run whose streams are spoiled before it begins."""
    spoil()
    run(method, line)


def _to(path: str, *numbers: int) -> Callable[[], None]:
    def spoil() -> None:
        file = os.open(path, os.O_WRONLY)
        for number in numbers:
            os.dup2(file, number)

    return spoil


def _broken_pipe(*numbers: int) -> Callable[[], None]:
    def spoil() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        for number in numbers:
            os.dup2(writing, number)

    return spoil


def _closed(*numbers: int) -> Callable[[], None]:
    def spoil() -> None:
        for number in numbers:
            with suppress(OSError, ValueError):
                (sys.stdin, sys.stdout, sys.stderr)[number].close()
            with suppress(OSError):
                os.close(number)

    return spoil


STREAMS: dict[str, Callable[[], None]] = {
    "stdout full": _to("/dev/full", 1),
    "stdout and stderr full": _to("/dev/full", 1, 2),
    "stdout a pipe without a reader": _broken_pipe(1),
    "stdout and stderr pipes without a reader": _broken_pipe(1, 2),
    "stdout closed": _closed(1),
    "stdin closed": _closed(0),
    "stdin and stdout closed": _closed(0, 1),
}
