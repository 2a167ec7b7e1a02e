"""How a run ends: the exceptions that every layer raises, the exit codes they become, the signals that stop it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_DONE = 0
EXIT_FAULT = 1  # a fault of ours: the traceback is shown
EXIT_INPUT = 2  # bad input: one line on stderr, nothing written
EXIT_STOPPED = 75  # a stop signal, after saving (EX_TEMPFAIL: run the command again with --resume)
# A lost terminal sends SIGHUP, Slurm SIGUSR1 where it is told to; some systems have neither.
_STOP = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")
STOP_SIGNALS = tuple(getattr(signal, name) for name in _STOP if hasattr(signal, name))


class InputError(Exception):
    """The user's input cannot be used: the message is one line naming the value, what is allowed and what to do."""


class Stopped(Exception):  # noqa: N818 (not an error)
    """A stop signal was obeyed; whatever had to be saved is saved."""


MOST = 300  # characters of a message


def printable(text: object) -> str:
    """Any text without what a terminal would obey: names in files may hold control characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text))


def one_line(text: object, most: int = MOST) -> str:
    """Any text as one line of at most `most` characters; a longer one loses its middle: its end says what to do."""
    line = printable(" ".join(str(text).split()))
    if len(line) <= most:
        return line
    end = most // 3
    return f"{line[: most - end - 5]} ... {line[-end:]}"


@contextmanager
def naming(path: object) -> Iterator[None]:
    """Errors inside are about this file: their message names it."""
    try:
        yield
    except InputError as error:
        text = str(error)
        raise InputError(text if str(path) in text else f"{path}: {text}") from error
