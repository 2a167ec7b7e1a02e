"""A pseudo-terminal that a program of this process writes to, and what a person sees there; not a test itself."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from collections.abc import Callable, Sequence

import pytest

BAR = re.compile(
    r"epoch \d+/\d+ (█*░+|█+|[ \d]+%) ?· ?loss [\d.]+ · [\d,.]+ pictures/s( · [\d:]+ left)?( · best [\d.]+ %)?"
)


class Screen:
    """What was written to a terminal, line by line as it is left; `states` stood there for a while and are gone."""

    def __init__(self, written: bytes, columns: int) -> None:
        self.lines: list[str] = []
        self.states: list[str] = []
        for line in written.decode().split("\n"):
            row = ""
            for part in line.removesuffix("\r").split("\r"):
                assert part.replace("\t", "").isprintable(), part
                if row.strip() and part:
                    assert len(row) < columns, "a state runs over the edge, where no carriage return takes it back"
                    self.states.append(row.rstrip())
                row = part + row[len(part) :]
            self.lines += [row.rstrip()] if row.strip() else []

    @property
    def bars(self) -> list[str]:
        """The states of the bar."""
        return [state for state in self.states if BAR.fullmatch(state)]

    def check(self, record: Sequence[str]) -> None:
        """The record stands there whole, no figures of log lines do, and a bar was there."""
        assert [line for line in self.lines if line in record] == [line.rstrip() for line in record]
        assert not [line for line in self.lines if line.startswith("epoch ") and line not in record]
        assert ": loading torch" in self.states[0] and self.bars, self.states


def on_terminal(
    columns: int, program: Callable[[], object], monkeypatch: pytest.MonkeyPatch, *, record: bool = True,
    kind: str = "xterm",
) -> Screen:  # fmt: skip
    """Run a program whose stderr, and with `record` stdout, is a terminal of this width."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written: list[bytes] = []

    def read() -> None:
        try:
            while found := os.read(leader, 65536):
                written.append(found)
        except OSError:  # the last writer has left
            pass

    reader = threading.Thread(target=read)
    reader.start()
    with monkeypatch.context() as patch, os.fdopen(follower, "w", encoding="utf-8") as stderr:
        patch.setattr("lowbit.train.console.EVERY", 0.0)
        patch.setenv("TERM", kind)
        patch.setattr(sys, "stderr", stderr)
        with os.fdopen(os.dup(follower), "w", encoding="utf-8") as stdout:
            if record:
                patch.setattr(sys, "stdout", stdout)
            try:
                program()
            except SystemExit as end:
                assert not end.code
    reader.join()
    os.close(leader)
    return Screen(b"".join(written), columns)
