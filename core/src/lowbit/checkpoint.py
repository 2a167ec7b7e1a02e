"""Checkpoint files: written whole or not at all (`lowbit.files`), read without running code."""

import errno
import io
import logging
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.files import previous, replace_file

CHECKPOINT = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"

log = logging.getLogger(__name__)


def pack(state: Mapping[str, Any]) -> memoryview:
    """The bytes of a checkpoint file. Through a buffer, since a full disk inside `torch.save` is no OSError."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getbuffer()


def write_checkpoint(path: Path, state: Mapping[str, Any], *, keep_previous: bool = True) -> None:
    """Write a dict of tensors and plain values; an existing file becomes `previous(path)` if `keep_previous`.

    Raises:
        InputError: it cannot be written (a full disk), or its weights are not finite; the last good file is untouched.
    """
    found = first_bad(state)
    if found is not None:
        raise InputError(
            f"the run diverged: {found} holds NaN or infinity, so {path} is not written; go on from the last good "
            "checkpoint with a lower learning rate or --clip-grad"
        )
    replace_file(path, pack(state), keep_previous=keep_previous)


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested dicts, lists and tuples, with its place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from tensors(inner, f"{name}[{number}]")


def first_bad(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinity, among weights and optimizer state where they are told apart."""
    judged = {key: state[key] for key in ("state_dict", "optimizer") if key in state} or state
    floats = ((name, t) for name, t in tensors(judged) if t.is_floating_point())
    suspects = ((name, t) for name, t in floats if not bool(torch.isfinite(t.sum())))  # a sum makes no second tensor
    return next((name for name, t in suspects if not bool(torch.isfinite(t).all())), None)


def check_kinds(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuse integers or complex numbers where a net has floats, and the reverse: loading would convert them silently.

    Args:
        given: what is to be loaded.
        own: the net's tensors; names that only one of them has are not looked at.

    Raises:
        InputError: the first that differs.
    """
    for name, tensor in own.items():
        other = given.get(name)
        if isinstance(other, Tensor) and kind(other) != kind(tensor):
            raise InputError(
                f"{name} holds {kind(other)} ({str(other.dtype).removeprefix('torch.')}) where the net has "
                f"{kind(tensor)}: name a checkpoint of this net"
            )


def kind(tensor: Tensor) -> str:
    """What a tensor's numbers are: "floats", "complex numbers" or "integers" (also true and false)."""
    if tensor.is_complex():
        return "complex numbers"
    return "floats" if tensor.is_floating_point() else "integers"


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
