"""`lowbit.load(path)`: the net of any checkpoint or export of any installed method.

Methods register a function (checkpoint dict -> net, or None if it is not theirs) in the entry point group
`lowbit.methods`; core knows none of them by name.
"""

from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.checkpoint.check import check_kinds
from lowbit.checkpoint.read import read_checkpoint
from lowbit.errors import InputError
from lowbit.export.backbone import load_backbone
from lowbit.export.packed import load_packed

GROUP = "lowbit.methods"


def load(path: Path | str) -> nn.Module:
    """Build the net of a file, in evaluation mode on the CPU.

    Args:
        path: a checkpoint (`*.pth.tar`), a packed export or a `backbone.safetensors`.

    Raises:
        InputError: missing, damaged, or of no installed method; no code of the file is run.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        backbone = load_backbone(path) if path.is_file() else None
        return load_packed(path) if backbone is None else backbone
    checkpoint = read_checkpoint(path)
    methods = entry_points(group=GROUP)
    for method in methods:
        try:
            with torch.random.fork_rng(devices=[]):  # building a net draws weights
                model: nn.Module | None = method.load()(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if model is not None:
            return model.eval()
    package = checkpoint.get("package")
    needed = f"install the package lowbit-{package}" if package else "it names no package; name another file"
    raise InputError(
        f"{path} belongs to none of the installed methods ({', '.join(m.name for m in methods) or 'none'}): {needed}"
    )


def is_of(checkpoint: Mapping[str, Any], package: str, newest: int) -> bool:
    """Whether a checkpoint was written by a package.

    Args:
        checkpoint: as it was read.
        package: its import name.
        newest: the last format that this version of it reads.

    Raises:
        InputError: it was, and in a later format.
    """
    if checkpoint.get("package") != package:
        return False
    version = checkpoint.get("format")
    if type(version) is not int or version > newest:
        raise InputError(f"the checkpoint has format {version}, this version reads {newest}: update lowbit-{package}")
    return True


def load_state_(model: nn.Module, checkpoint: Mapping[str, Any]) -> nn.Module:
    """Give a net exactly the tensors of a checkpoint; returns it.

    Raises:
        InputError: tensors that are missing, left over, or of another shape or kind.
    """
    state = checkpoint.get("state_dict")
    tensors = isinstance(state, Mapping) and all(isinstance(value, Tensor) for value in state.values())
    if not state or not tensors:
        raise InputError("the checkpoint holds no state_dict of tensors; name another file")
    try:
        check_kinds(state, model.state_dict())
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint's tensors do not fit the net that it names: {reason}") from error
    return model
