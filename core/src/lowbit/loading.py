"""`lowbit.load(path)`: the net of any checkpoint or export of any installed method.

Methods register a function (checkpoint dict -> net, or None if it is not theirs) in the entry point group
`lowbit.methods`; core knows none of them by name.
"""

from importlib.metadata import entry_points
from pathlib import Path

import torch
from torch import nn

from lowbit.checkpoint.read import is_safetensors, read_checkpoint
from lowbit.errors import InputError
from lowbit.export.packed import load_packed
from lowbit.models.pretrained_cfg import ENTRY, set_pretrained_cfg_
from lowbit.models.weight_file import read_weights
from lowbit.models.weights import backbone_of

GROUP = "lowbit.methods"


def load(path: Path | str) -> nn.Module:
    """Build the net of a file, in evaluation mode on the CPU; its `pretrained_cfg` says how pictures are shown to it.

    Args:
        path: a checkpoint (`*.pth.tar`), a packed export or a `backbone.safetensors`.

    Raises:
        InputError: missing, damaged, or of no installed method; no code of the file is run.
    """
    path = Path(path)
    if is_safetensors(path):
        weights = read_weights(path)
        with torch.random.fork_rng(devices=[]):  # building a net draws weights
            if not weights.ours:
                return load_packed(path)
            return _described(backbone_of(weights).model, weights.said.get(ENTRY), path)
    checkpoint = read_checkpoint(path)
    methods = entry_points(group=GROUP)
    for method in methods:
        try:
            with torch.random.fork_rng(devices=[]):
                model: nn.Module | None = method.load()(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if model is not None:
            return _described(model.eval(), checkpoint.get(ENTRY), path)
    package = checkpoint.get("package")
    needed = f"install the package lowbit-{package}" if package else "it names no package; name another file"
    raise InputError(
        f"{path} belongs to none of the installed methods ({', '.join(m.name for m in methods) or 'none'}): {needed}"
    )


def _described(model: nn.Module, said: object, path: Path) -> nn.Module:
    try:
        return set_pretrained_cfg_(model, said)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
