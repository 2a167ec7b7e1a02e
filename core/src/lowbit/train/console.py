"""The two streams of a command: its record on stdout, log lines and errors on stderr (no torch here).

Both are looked up again for each line. A reader that goes away (`| head`), a full device or a lost terminal costs the
lines, not the run.
"""

import contextlib
import logging
import os
import sys
from typing import TextIO

_lost: TextIO | None = None  # the stdout that nobody reads any more


def say(*lines: str) -> None:
    """Lines of the record, on stdout; where they cannot be written this is reported once, and the rest is left out."""
    global _lost
    checked()
    stream = sys.stdout
    if stream is _lost:
        return
    try:
        stream.write("".join(f"{line}\n" for line in lines))
        stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _lost = stream
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer would be an error at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        report(f"stdout cannot be written to ({error}): the record ends here, the run goes on")


def report(line: str) -> None:
    """A line on stderr, if there is anyone to read it."""
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at that moment (test runners replace it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.held: list[logging.LogRecord] | None = []  # while the command may still be refused

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, or keep it until the command's input is checked."""
        if self.held is None:
            super().emit(record)
        else:
            self.held.append(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """A lost terminal is no reason to print a traceback for each line; anything else is."""
        if not isinstance(sys.exc_info()[1], OSError | ValueError):
            super().handleError(record)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream of this handler is sys.stderr")


def checked() -> None:
    """The input is accepted: log lines, held back until now, are written from here on."""
    _release(written=True)


def refused() -> None:
    """The input is refused: one line says so, and remarks made on the way to it are left out."""
    _release(written=False)


def _release(written: bool) -> None:
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Stderr):
            held, handler.held = handler.held or [], None
            for record in held if written else ():
                handler.emit(record)


def configure_logging(package: str) -> None:
    """Our log lines and errors of others go to stderr (ranks above 0: no notes); stdout is the record.

    Log lines begin with the record, or with `checked`. Warnings of Python and of libraries are not shown.
    """
    logging.captureWarnings(True)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's C++ advises every rank against what the loop needs
    os.environ.setdefault("TORCH_LOGS", "-all")  # its loggers have a handler of their own; errors remain
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Stderr)]  # of another command in this process
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda line: line.levelno > logging.WARNING or line.name.split(".")[0] in ("lowbit", package))
    root.addHandler(handler)
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
