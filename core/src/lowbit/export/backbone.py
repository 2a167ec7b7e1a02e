"""Float weights as safetensors, keys as timm's: a backbone without its last layer, or a whole net, narrower or not.

`timm.create_model(arch, num_classes=0, checkpoint_path=path)` loads `backbone.safetensors` strictly. One metadata key,
a JSON string, says which net it is and holds a checksum (with several keys safetensors writes them in random order).
A binary net's weights are those that are trained, and the description says what is binary: `lowbit.load` makes it so.
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from lowbit.errors import InputError
from lowbit.export.rebuild import describe_sizes
from lowbit.files import replace_file
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import ENTRY, Cfg, without_head
from lowbit.models.resized import resize_
from lowbit.models.weight_file import BINARIZATION, CLASSES, KEY, SIZES, digest_of
from lowbit.quant.binary import binarize_, step_of
from lowbit.quant.layers import to_plain_


def save_backbone(model: nn.Module, path: Path, arch: str, cfg: Mapping[str, Any] | None = None) -> None:
    """Write the backbone of a net; quantized layers (but binary ones) give the floats they compute with.

    Args:
        model: a timm net, quantized layers and activations allowed.
        path: file to write or replace.
        arch: timm name.
        cfg: how pictures are shown to it (`lowbit.models.pretrained_cfg`); None: not known.

    Raises:
        InputError: the net's tensors are not those of `arch` (it has no running statistics, or is slimmed), so that
            timm could not load them; or the file cannot be written.
    """
    said: dict[str, Any] = {"arch": arch} | ({} if cfg is None else {ENTRY: without_head(cfg)})
    plain, step = _plain(model)
    _write(plain, create_model(arch, num_classes=0), path, said, step)


def save_network(model: nn.Module, path: Path, arch: str, classes: int, cfg: Cfg) -> None:
    """Write a whole net as it computes; slimmed layers at their sizes, which the file states for `lowbit.load`.

    Args:
        model: a timm net, quantized and slimmed layers allowed.
        path: file to write or replace.
        arch: timm name.
        classes: of its last layer; 0: it has none, or what is in its place is left out.
        cfg: how pictures are shown to it, and the classes' names.

    Raises:
        InputError: as `save_backbone`.
    """
    (plain, step), built = _plain(model), create_model(arch, num_classes=classes)
    sizes = describe_sizes(model, plain, built)
    said = {"arch": arch, CLASSES: classes, SIZES: sizes, ENTRY: cfg if classes else without_head(cfg)}
    _write(plain, resize_(built, sizes), path, said, step)


def _plain(model: nn.Module) -> tuple[nn.Module, int]:
    """A copy of plain layers, and the step of a binary net."""
    copy, step = deepcopy(model), step_of(model)
    return to_plain_(binarize_(copy, 0) if step else copy), step


def _write(plain: nn.Module, like: nn.Module, path: Path, said: dict[str, Any], step: int) -> None:
    """The tensors of `plain` that `like` has at a step, with a description.

    Raises:
        InputError: one is missing or has another shape, or the file cannot be written.
    """
    if step:
        said[BINARIZATION], like = step, binarize_(like, step)
    have, wanted = plain.state_dict(), like.state_dict()
    for key, other in wanted.items():
        if key not in have or have[key].shape != other.shape:
            found = f"has shape {tuple(have[key].shape)}, not {tuple(other.shape)}" if key in have else "is missing"
            raise InputError(
                f"{path.name}: the net is no {said['arch']} as timm has it: its {key} {found}; nothing was written"
            )
    tensors = {key: have[key].detach().cpu().to(other.dtype).contiguous() for key, other in wanted.items()}
    said["digest"] = digest_of(said, tensors)
    replace_file(path, safetensors.torch.save(tensors, {KEY: json.dumps(said)}))
