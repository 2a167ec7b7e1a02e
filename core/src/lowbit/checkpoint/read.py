"""Checkpoint files read without running code."""

import errno
import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from lowbit.checkpoint.check import first_bad
from lowbit.checkpoint.write import CHECKPOINT
from lowbit.errors import InputError
from lowbit.files import previous

log = logging.getLogger(__name__)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running any code of it.

    Raises:
        InputError: missing, truncated, altered, not a checkpoint, holding code, or holding NaN or infinity.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} is not a file: name a checkpoint, such as RUN/{CHECKPOINT}")
    if path.suffix == ".safetensors":
        raise InputError(f"{path} is an export, not a checkpoint: name a *.pth.tar file (lowbit.load reads both)")
    try:
        _check_sums(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the kinds of damage raise a dozen types; none of them is our fault
        # torch advises to run the file's code; bare keys; no words; EINVAL where it seeks beyond the end
        vague = isinstance(error, pickle.UnpicklingError | LookupError | EOFError)
        if vague or (isinstance(error, OSError) and error.errno == errno.EINVAL):
            reason = "it holds something else, or is cut off"
        else:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f"{path} is damaged, or no checkpoint of tensors and plain values (a file that holds code is never run): "
            f"{reason}; name another file"
        ) from error
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not the dict that a checkpoint is; name another file")
    found = first_bad(state)
    if found is not None:
        raise InputError(f"{path} holds NaN or infinity in {found}: that run diverged; name a checkpoint from before")
    return state


def _check_sums(path: Path) -> None:
    """A file of torch.save is a zip archive with a checksum of each tensor, which torch.load does not look at.

    Raises:
        BadZipFile: a checksum is wrong. Files of before torch 1.6 are no archives and have none; torch can also be told
            to write none.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
        if wrong is not None:
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")


def newest_good(folder: Path, name: str = CHECKPOINT) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint of a folder that reads well, or None where there is none at all.

    Raises:
        InputError: there are files and none of them reads well (starting afresh would overwrite them).
    """
    problems = []
    for path in (folder / name, previous(folder / name)):
        if not path.exists():
            continue
        try:
            state = read_checkpoint(path)
        except InputError as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; going on from %s", problems[0], path)
        return path, state
    if problems:
        raise InputError(f"no good checkpoint in {folder}: {problems[0]}; --overwrite starts afresh")
    return None
