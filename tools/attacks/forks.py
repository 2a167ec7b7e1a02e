"""One process an input, forked from a process that has everything imported, under limits of time and memory.

Times are CPU seconds of the process, and seconds that it sleeps: on a busy machine an input is not slow because others
compute. Memory is what only this process holds, over what it held when its input was made.
"""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HANG = 10.0  # seconds, of computing or of sleeping
GROWTH = 1 << 30  # bytes
READY = b"ready\n"
TICK = 0.005  # seconds between looks
_HERTZ = os.sysconf("SC_CLK_TCK")

Ended = Callable[[Any, dict[str, Any] | None, str, float], None]  # about what, its answer, how else, CPU seconds
Child = Callable[[Callable[[], None]], dict[str, Any]]  # it is given what says that the input is made


@dataclass
class Fork:
    """A process at work."""

    pid: int
    pipe: int
    about: Any
    start: float = field(default_factory=time.monotonic)
    said: bytes = b""
    held: int | None = None  # bytes, and CPU seconds, when its input was made
    computed: float = 0.0
    slept: float = 0.0
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> str | None:
        """What limit is broken."""
        with suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 16):
                self.said += part
        now, (state, seconds), held = time.monotonic(), _times(self.pid), _own_bytes(self.pid)
        passed, self.looked = now - self.looked, now
        if self.held is None:
            if self.said.startswith(READY):
                self.held, self.computed, self.slept = held, seconds, 0.0
            return "making the input took two minutes" if now - self.start > 120 else None
        self.slept += passed if state in "SD" else 0.0
        if held - self.held > GROWTH:
            return f"memory: it grew by more than {GROWTH >> 20} MiB"
        if seconds - self.computed > HANG or self.slept > HANG:
            return f"hang: {'computing' if seconds - self.computed > HANG else 'waiting'} for more than {HANG:.0f} s"
        return None

    def end(self) -> tuple[dict[str, Any] | None, str]:
        """What it answered (None: nothing), and how it ended, if not by itself."""
        with suppress(BlockingIOError):
            while part := os.read(self.pipe, 1 << 16):
                self.said += part
        os.close(self.pipe)
        _, _, rest = self.said.partition(READY)
        return (json.loads(rest), "") if rest.endswith(b"}\n") else (None, "it answered nothing")


def start(child: Child, about: Any) -> Fork:
    """Fork a process that answers with what `child` returns."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        os.set_blocking(reading, False)
        return Fork(pid, reading, about)
    os.setpgid(0, 0)  # so that what it starts ends with it
    os.close(reading)
    code = 1
    try:
        answer = child(lambda: _say_ready(writing))
        os.write(writing, json.dumps(answer).encode() + b"\n")
        code = 0
    except BaseException as error:
        how = f"the tool itself: {type(error).__name__}: {error}"[:500]
        answer = {"end": "tool", "how": how, "err": traceback.format_exc()[-1500:]}
        os.write(writing, READY + json.dumps(answer).encode() + b"\n")
    finally:
        os._exit(code)


def _say_ready(pipe: int) -> None:
    """Say that the input is made."""
    os.write(pipe, READY)


def wait(forks: list[Fork], ended: Ended) -> None:
    """Until at least one of the processes is over: each of those is taken off the list, and reported to `ended`."""
    while True:
        over = []
        for fork in forks:
            pid, status, used = os.wait4(fork.pid, os.WNOHANG)
            broken = None if pid else fork.look()
            if pid or broken:
                over.append((fork, status, used.ru_utime + used.ru_stime, broken))
        for fork, status, seconds, broken in over:
            forks.remove(fork)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(fork.pid, signal.SIGKILL)
            if broken:
                with suppress(ProcessLookupError):
                    os.kill(fork.pid, signal.SIGKILL)
                os.waitpid(fork.pid, 0)
            answer, how = fork.end()
            if not broken and os.WIFSIGNALED(status):
                broken = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
            ended(fork.about, None if broken else answer, broken or how, seconds)
        if over:
            return
        time.sleep(TICK)


def _times(pid: int) -> tuple[str, float]:
    """State, and CPU seconds of all threads and of children that are over."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "Z", 0.0
    return fields[0], sum(map(int, fields[11:15])) / _HERTZ


def _own_bytes(pid: int) -> int:
    """Resident bytes but those of mapped files."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))
