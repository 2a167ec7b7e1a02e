"""Whether a folder may take a run, found before anything is written: its path, and what its files would replace."""

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from lowbit.errors import InputError
from lowbit.files import regular_or_missing

MAX_LEVELS = 256  # of a path; making a folder goes up its path, a call a level


def check_place(path: Path) -> None:
    """Refuse a path that no folder can be made or used at.

    Raises:
        InputError: a file, a name that is too long, too many levels, a link to itself or to nothing, a folder that may
            not be searched or written to.
    """
    if len(path.parts) > MAX_LEVELS:
        raise InputError(f"--output {path} has more than {MAX_LEVELS} levels of folders: name another folder")
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            raise InputError(f"--output {path} is a link to nothing: name another folder") from None
        if path.parent != path:
            _check_writable(path, _nearest(path.parent))
        return
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise InputError(f"--output {path} cannot be used: {_reason(error)}; name another folder") from error
    if not stat.S_ISDIR(mode):
        raise InputError(f"--output {path} is a file: name a folder")
    _check_writable(path, path)


def _nearest(path: Path) -> Path:
    """The folder that is there, of a path or of what is above it."""
    return path if path.exists() or path.parent == path else _nearest(path.parent)


def _check_writable(path: Path, there: Path) -> None:
    if not os.access(there, os.R_OK | os.W_OK | os.X_OK):
        reason = f"{os.strerror(errno.EACCES)} ({there} has to be read, written and searched)"
        raise InputError(f"--output {path} cannot be used: {reason}; name another folder")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def check_files(path: Path, patterns: Sequence[str]) -> None:
    """Refuse a folder in which a run's file would meet something else of its name: a folder, a FIFO, a device.

    Where files have a folder of their own, it meets a folder or nothing.

    Args:
        path: the folder, which may be missing.
        patterns: of the names of a run's files.

    Raises:
        InputError: the first that is found.
    """
    if not path.is_dir():
        return
    for pattern in patterns:
        folder, last = (path / pattern).parent, Path(pattern).name
        if folder.is_dir():
            _check_writable(path, folder)
        elif os.path.lexists(folder):
            raise InputError(f"--output {path}: {folder.name} there is no folder: move it away or name another folder")
        for name in (last, f".{last}.tmp", f".{last}.link"):
            for found in sorted(folder.glob(name)) if "*" in name else [folder / name]:
                try:
                    regular_or_missing(found)
                except OSError as error:
                    raise InputError(
                        f"--output {path}: {found.name} there cannot be a run's file ({_reason(error)}): move it away "
                        "or name another folder"
                    ) from error


def check_weights(path: Path, patterns: Sequence[str]) -> None:
    """Refuse a folder with files where a training writes its own; the authors' programs leave theirs where they start.

    Args:
        path: the folder, which holds no run and may be missing.
        patterns: of the names of a training's files.

    Raises:
        InputError: the first that is found.
    """
    found = sorted(file.name for pattern in patterns for file in path.glob(pattern))
    if found:
        raise InputError(
            f"--output {path} holds {found[0]} of another program, in whose place a training writes: name another "
            "folder, or replace it with --overwrite"
        )
