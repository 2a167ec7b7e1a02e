"""The lock of a run's folder: one run writes there at a time."""

import contextlib
import errno
import os
import sys
from pathlib import Path
from typing import IO

from lowbit.errors import InputError
from lowbit.files import open_regular, regular_or_missing

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

NAME = ".lock"
BUSY = (errno.EACCES, errno.EAGAIN)
_held: set[Path] = set()  # POSIX locks do not exclude their own process


class FolderLock:
    """Holds a folder that exists, until `release`.

    A POSIX record lock: unlike flock it is not inherited by loader workers that outlive a killed run.

    Raises:
        InputError: another run holds it.
        OSError: its file cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        refuse_busy(folder)
        self._place, self._path = folder.resolve(), folder / NAME
        regular_or_missing(self._path)  # opening a FIFO would wait
        self._file: IO[bytes] = self._path.open("ab")
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                self._file.close()
                if error.errno in BUSY:
                    raise _busy(folder) from error
                raise
            if not self._path.exists() or not os.path.samestat(os.fstat(self._file.fileno()), self._path.stat()):
                self._file.close()  # its holder removed it in this moment
                raise _busy(folder)
        _held.add(self._place)

    def release(self, *, remove: bool = False) -> None:
        """Let others have the folder, and with `remove` as if nobody had had it; twice is once."""
        if remove:
            with contextlib.suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._file.close()
        _held.discard(self._place)


def refuse_busy(folder: Path) -> None:
    """Refuse a folder that a run holds, without taking its lock (shared: askers do not disturb each other).

    Raises:
        InputError: a run is writing there.
    """
    if folder.resolve() in _held:  # before anything is opened: closing any file of the lock would release it
        raise _busy(folder)
    if fcntl is None:
        return
    try:
        file = open_regular(folder / NAME)
    except OSError:  # no run was ever there, or taking the lock will say what is wrong
        return
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in BUSY:
                raise _busy(folder) from error


def _busy(folder: Path) -> InputError:
    return InputError(f"--output {folder}: another run is writing there; wait for it or name another folder")
