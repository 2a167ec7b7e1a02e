"""Files written whole or not at all: a temporary file, then one rename (no torch here).

With `keep_previous` the file that is replaced keeps a second name (a hard link), so that a good file exists at every
moment, also when the process is killed between the renames.
"""

import contextlib
import errno
import io
import json
import math
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from lowbit.errors import InputError


def previous(path: Path) -> Path:
    """Name of the file before: `checkpoint.pth.tar` -> `checkpoint.prev.pth.tar`."""
    stem, dot, rest = path.name.partition(".")
    return path.with_name(f"{stem}.prev{dot}{rest}")


def regular_or_missing(path: Path) -> None:
    """Look at what a file is without opening it, which would block or act.

    Raises:
        OSError: it may not be looked at, or is no regular file but a folder, a FIFO, a device, a socket, or a link to
            nothing, through which a file would be made elsewhere.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise OSError(errno.EINVAL, "it is a link to nothing", str(path)) from None
        return
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise OSError(errno.EINVAL, f"it is {kind}, not a regular file", str(path))


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading. What would block or act when it is opened is recognised before.

    Raises:
        OSError: it is missing, may not be read, or is no regular file but a folder, a FIFO, a device or a socket.
    """
    regular_or_missing(path)
    return path.open("rb")


def _sync_folder(folder: Path) -> None:
    """Make renames durable; file systems that cannot sync a folder have done what they can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _keep(path: Path) -> None:
    """Give `path` its second name. Renaming one link onto another of the same file does nothing, hence the unlinks."""
    if not path.exists():
        return
    link = path.with_name(f".{path.name}.link")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # no hard links here: for a moment only the previous file exists, which `newest_good` finds
        path.replace(previous(path))
        return
    link.replace(previous(path))
    link.unlink(missing_ok=True)


def _new_file(path: Path) -> IO[bytes]:
    """A file that was not there before: what a killed run left, or somebody's link, goes, and nothing is followed."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), "wb")


def replace_file(path: Path, data: bytes | memoryview, *, keep_previous: bool = False) -> None:
    """Write `data` to a temporary file, flush it to the disk, rename it to `path`.

    Raises:
        InputError: it cannot be written (a full disk); the last good file is untouched and nothing is left behind.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with _new_file(temporary) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous:
            _keep(path)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(
            f"cannot write {path} ({len(data) / 1e6:.1f} MB): {error.strerror or error}; the last good file is "
            "untouched: make room or correct the rights there, then go on with --resume auto"
        ) from error
    _sync_folder(path.parent)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure of matplotlib as a PNG in one rename.

    Raises:
        InputError: it cannot be written.
    """
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120, format="png")
    replace_file(path, picture.getvalue())


def check_output_file(path: Path, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
    """Refuse a place that a file (`--output`) cannot go to, before anything is computed.

    Raises:
        InputError: a folder or a device, a folder that is missing, one of the files that are read, or a file that is
            there already.
    """
    if (path.exists() and not path.is_file()) or not path.parent.is_dir():
        raise InputError(f"--output {path}: name a file in a folder that exists")
    if path.exists() and any(path.samefile(other) for other in inputs if other.exists()):
        raise InputError(f"--output {path} is one of the files that are read: name another")
    if path.exists() and not overwrite:
        raise InputError(f"--output {path} exists: name another file, or replace it with --overwrite")


def finite(value: Any) -> Any:
    """`value` with None in the place of infinity and NaN, inside dicts, lists and tuples too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one rename; numbers that JSON cannot hold (infinity, NaN) become null.

    Raises:
        InputError: the disk is full or the folder cannot be written.
    """
    replace_file(path, (json.dumps(finite(value), indent=2, default=str, allow_nan=False) + "\n").encode())
