"""Checkpoint files, written whole or not at all (`lowbit.files`)."""

import contextlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lowbit.checkpoint import binary
from lowbit.checkpoint.check import first_bad
from lowbit.errors import InputError
from lowbit.files import replace_file

CHECKPOINT = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"


class Names(NamedTuple):
    """Where a run's folder holds its newest checkpoint and the selected one."""

    last: str = CHECKPOINT
    best: str = BEST


NAMES = Names()


def pack(state: Mapping[str, Any]) -> memoryview:
    """The bytes of a checkpoint file. Through a buffer, since a full disk inside `torch.save` is no OSError.

    Binary tensors of ours become bits (`lowbit.checkpoint.binary`); files in an author's layout, which name no package,
    stay as that author's program reads them.
    """
    buffer = io.BytesIO()
    torch.save(binary.pack(state) if "package" in state else dict(state), buffer)
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
    with contextlib.suppress(OSError):  # what is wrong shows when it is written
        path.parent.mkdir(exist_ok=True)
    replace_file(path, pack(state), keep_previous=keep_previous)
