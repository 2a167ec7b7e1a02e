"""Checkpoint files read without running code: those of `torch.save`, of any version, and safetensors."""

import errno
import logging
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from lowbit.checkpoint import binary
from lowbit.checkpoint.budget import check_content, check_header, check_records
from lowbit.checkpoint.check import first_bad
from lowbit.checkpoint.pickled import HARMLESS, foreign, protocol
from lowbit.checkpoint.write import CHECKPOINT
from lowbit.errors import InputError
from lowbit.files import previous

METADATA = "metadata"

log = logging.getLogger(__name__)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running any code of it.

    Raises:
        InputError: missing, truncated, altered, not a checkpoint, holding code, or holding NaN or infinity.
    """
    path = Path(path)
    if is_safetensors(path):
        raise InputError(f"{path} is an export, not a checkpoint: name a *.pth.tar file (lowbit.load reads both)")
    state = _read_torch(path)
    found = first_bad(state)
    if found is not None:
        raise InputError(f"{path} holds NaN or infinity in {found}: that run diverged; name a checkpoint from before")
    return state


def read_file(path: Path | str) -> dict[str, Any]:
    """Read any file of weights to the CPU without running any code of it; whether they are finite is not looked at.

    Returns:
        What the file holds; of safetensors {"state_dict": tensors, "metadata": {name: text}}.

    Raises:
        InputError: missing, truncated, altered, or holding code.
    """
    path = Path(path)
    return read_safetensors(path) if is_safetensors(path) else _read_torch(path)


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: a length of 8 bytes, then JSON."""
    try:
        if not path.is_file():  # a pipe would wait for a writer
            return False
        with path.open("rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def read_safetensors(path: Path) -> dict[str, Any]:
    """Tensors and metadata of safetensors: {"state_dict": tensors, "metadata": {name: text}}.

    Raises:
        InputError: missing or damaged.
    """
    _need_file(path)
    try:
        check_header(path)
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            return {"state_dict": tensors, METADATA: dict(file.metadata() or {})}
    except (SafetensorError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path} is damaged ({reason}); name another file") from error


def _read_torch(path: Path) -> dict[str, Any]:
    _need_file(path)
    try:
        _check_archive(path)
        with warnings.catch_warnings(), torch.serialization.safe_globals(list(HARMLESS)):
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is said below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except Exception as error:  # the kinds of damage raise a dozen types; none of them is our fault
        raise InputError(_why_not(path, error)) from error
    check_content(state, path)
    if not isinstance(state, dict):
        raise InputError(f"{path} holds a {type(state).__name__}, not the dict that a checkpoint is; name another file")
    if not isinstance(state.get("package"), str | None):
        raise InputError(f"{path}: its package is a {type(state['package']).__name__}, no name; name another file")
    try:
        return binary.unpack(state)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}; name another file") from error


def _need_file(path: Path) -> None:
    """Refuse what is no ordinary file: folders, pipes, devices, names that the system does not take."""
    try:
        if path.is_file():
            return
        reason = "is not a file"
    except OSError as error:  # a name that is too long, a folder that may not be searched
        reason = f"cannot be opened ({error.strerror})"
    raise InputError(f"{path} {reason}: name a checkpoint, such as RUN/{CHECKPOINT}")


def _why_not(path: Path, error: Exception) -> str:
    """In one line: what keeps a file from being read."""
    if protocol(path) > 2:
        return (
            f"{path} was saved with pickle_protocol={protocol(path)}, which torch reads by running it alone: save "
            "its state_dict alone, with torch.save's default"
        )
    if isinstance(error, pickle.UnpicklingError) and (names := foreign(path)):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        whole = any(name.startswith("torch.nn.modules.") for name in names)
        what = f"a whole net ({shown})" if whole else f"{shown} beside the weights"
        return f"{path} holds {what}: save its state_dict alone (code of a file is never run)"
    # torch advises to run the file's code; bare keys; no words; EINVAL where it seeks beyond the end
    vague = isinstance(error, pickle.UnpicklingError | LookupError | EOFError)
    if vague or (isinstance(error, OSError) and error.errno == errno.EINVAL):
        reason = "it holds something else, or is cut off"
    else:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return (
        f"{path} is damaged, or no checkpoint of tensors and plain values (a file that holds code is never run): "
        f"{reason}; name another file"
    )


def _check_archive(path: Path) -> None:
    """A file of torch.save is a zip archive with a checksum of each tensor, which torch.load does not look at.

    Raises:
        BadZipFile: a checksum is wrong. Files of before torch 1.6 are no archives and have none; torch can also be told
            to write none.
        InputError: it is TorchScript.
    """
    if zipfile.is_zipfile(path):
        check_records(path)
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip() if any(entry.CRC for entry in archive.infolist()) else None
            script = any("/code/" in name for name in archive.namelist())
        if wrong is not None:
            raise zipfile.BadZipFile(f"the checksum of {wrong} is wrong")
        if script:
            raise InputError(f"{path} is TorchScript: save its state_dict alone (code of a file is never run)")


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
