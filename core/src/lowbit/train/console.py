"""Where log lines go: stderr, looked up anew for each; stdout is left to a command's record (no torch here)."""

import logging
import os
import sys
from typing import TextIO


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at that moment (test runners replace it)."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        raise AttributeError("the stream of this handler is sys.stderr")


def configure_logging(package: str) -> None:
    """Our log lines and errors of others go to stderr (ranks above 0: no notes); stdout is the record."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # DDP's C++ advises every rank against what the loop needs
    root = logging.getLogger()
    root.handlers = [h for h in root.handlers if not isinstance(h, _Stderr)]  # of another command in this process
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda line: line.levelno > logging.WARNING or line.name.split(".")[0] in ("lowbit", package))
    root.addHandler(handler)
    root.setLevel(logging.INFO if os.environ.get("RANK", "0") == "0" else logging.WARNING)
