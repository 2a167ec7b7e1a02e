"""The two streams of a command: its record on stdout, log lines and errors on stderr (no torch here).

Both are looked up again for each line. A reader that goes away (`| head`), a full device or a lost terminal costs the
lines, not the run.

On a terminal the last line of stderr shows what goes on (`show`): a bar, or what is being read. It is replaced in
place, and lines stand above it. What it says, and what the record says on the same terminal, is not logged there again:
log lines with `INTERVAL` or `FIGURES` as their `extra`.
"""

import contextlib
import logging
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

INTERVAL = {"told": "interval"}  # of a log line that the bar makes superfluous
FIGURES = {"told": "figures"}  # of one whose figures the record may have said

EVERY = 0.2  # seconds between two looks of the line that is shown
T = TypeVar("T")

_lost: TextIO | None = None  # the stdout that nobody reads any more
_shown = ""  # the last line of the terminal
_recorded = False  # whether the record said something since the last line of figures


def columns() -> int:
    """Characters in a line of the terminal on stderr that this process may show things on; 0: there is none.

    One that is said to be dumb takes back nothing that stands there.
    """
    try:
        if os.environ.get("RANK", "0") != "0" or os.environ.get("TERM") == "dumb" or not sys.stderr.isatty():
            return 0
        return os.get_terminal_size(sys.stderr.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError, AttributeError):  # closed, or replaced by something that is no file
        return 0


def one_terminal() -> bool:
    """Whether the record and log lines come to the same terminal."""
    try:
        return sys.stderr.isatty() and os.path.sameopenfile(sys.stdout.fileno(), sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False


def record_on_terminal() -> bool:
    """Whether the record is read on a terminal."""
    try:
        return sys.stdout.isatty()
    except (ValueError, AttributeError):
        return False


def show(line: str = "") -> None:
    """Put a line below everything else on the terminal, in the place of the one before; "" takes it away.

    The cursor stays at its beginning, so that what is typed (^C) tears no line. Without a terminal nothing is shown.
    """
    global _shown
    width = columns() - 1  # a full line would move to the next one
    if width < 1 or not (line or _shown):
        return
    _shown = line
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(f"\r{line[:width]:{width}}\r")
        sys.stderr.flush()


def counted(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """The items, whose count is shown in front of what was shown before, which returns at their end."""
    before, due = _shown, time.perf_counter() + EVERY
    try:
        for number, item in enumerate(items):
            if time.perf_counter() >= due:
                due = time.perf_counter() + EVERY
                show(" · ".join(filter(None, (f"{what} {number}" + ("" if total is None else f"/{total}"), before))))
            yield item
    finally:
        show(before)


def begin_figures() -> None:
    """What the record said until now is none of the figures that follow."""
    global _recorded
    _recorded = False


@contextlib.contextmanager
def _above() -> Iterator[None]:
    """What is written inside stands above the line that is shown."""
    line = _shown
    show()
    yield
    show(line)


def say(*lines: str) -> None:
    """Lines of the record, on stdout; where they cannot be written this is reported once, and the rest is left out."""
    global _lost, _recorded
    checked()
    stream, _recorded = sys.stdout, True
    if stream is _lost:
        return
    try:
        with _above():
            stream.write(_in_its_signs("".join(f"{line}\n" for line in lines), stream))
            stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it is closed
        _lost = stream
        with contextlib.suppress(OSError, ValueError):  # what is left in its buffer would be an error at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        report(f"stdout cannot be written to ({error}): the record ends here, the run goes on")


def _in_its_signs(text: str, stream: TextIO) -> str:
    """The text without signs that a stream lacks, which would be an error (stderr replaces them itself)."""
    signs = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(signs, "backslashreplace").decode(signs)


def report(line: str) -> None:
    """A line on stderr, if there is anyone to read it."""
    with contextlib.suppress(OSError, ValueError), _above():
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at that moment (test runners replace it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)
        self.held: list[logging.LogRecord] | None = []  # while the command may still be refused

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line that says something new, or keep it until the command's input is checked."""
        if self.held is not None:
            self.held.append(record)
        elif _says_new(getattr(record, "told", "")):
            with _above():
                super().emit(record)

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


def _says_new(told: str) -> bool:
    """Whether a log line says something that the terminal does not show otherwise."""
    global _recorded
    if told == FIGURES["told"]:
        recorded, _recorded = _recorded, False
        return not (recorded and one_terminal())
    return told != INTERVAL["told"] or not columns()


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
