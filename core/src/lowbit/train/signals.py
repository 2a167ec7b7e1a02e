"""Stop signals become a flag that the loops ask for between two steps (no torch: the CLI installs this first).

A handler that raised could interrupt a collective or a save; a flag cannot. `torchrun` and a terminal send the signal
more than once, so a second one changes nothing: a process that hangs has to be killed with SIGKILL.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType

from lowbit.errors import STOP_SIGNALS

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>
_requested = False
_ended = False  # `ignore` was called: what is ignored now was not so at the start


def _remember(number: int, frame: FrameType | None) -> None:
    global _requested
    _requested = True


def install() -> None:
    """Catch the stop signals from now on; under a launcher on Linux, ask for SIGTERM when the launcher dies.

    A signal that is ignored already stays so: that is what `nohup` is for.

    `accelerate launch` dies on SIGTERM without telling its child. Without a launcher the parent is a shell, whose end
    must not stop a run started with `nohup`.
    """
    for number in STOP_SIGNALS:
        if _ended or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _remember)
    launched = "LOCAL_RANK" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # without prctl the worker has to be signalled itself
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def stop_requested() -> bool:
    """Whether this process was told to stop (several ranks: `lowbit.train.process.stop_agreed`)."""
    return _requested


def request_stop() -> None:
    """Set the flag, as a signal does."""
    _remember(signal.SIGTERM, None)


def clear() -> None:
    """Forget a request, for a program that goes on after `Stopped` (a notebook, tests)."""
    global _requested
    _requested = False


def ignore() -> None:
    """Ignore further signals: the program ends anyway, and Python restores their defaults, which kill, as it does."""
    global _ended
    with contextlib.suppress(ValueError):  # not the main thread
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        _ended = True


def guarded(program: Callable[[], object]) -> None:
    """Run a console script: stop signals are caught from its start to its end."""
    install()
    try:
        program()
    finally:
        ignore()
