"""`backbone.safetensors`: a net without its last layer, float weights, keys as timm's.

`timm.create_model(arch, num_classes=0, checkpoint_path=path)` loads it strictly. One metadata key, a JSON string, says
which net it is and holds a checksum (with several keys safetensors writes them in random order).
"""

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from lowbit.errors import InputError
from lowbit.files import replace_file
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import ENTRY, without_head
from lowbit.models.weight_file import KEY, digest_of
from lowbit.quant.layers import to_plain_


def save_backbone(model: nn.Module, path: Path, arch: str, cfg: Mapping[str, Any] | None = None) -> None:
    """Write the backbone of a net; quantized layers give the floats they compute with.

    Args:
        model: a timm net, quantized layers and activations allowed.
        path: file to write or replace.
        arch: timm name.
        cfg: how pictures are shown to it (`lowbit.models.pretrained_cfg`); None: not known.

    Raises:
        InputError: the net's tensors are not those of `arch` (it has no running statistics, or is slimmed), so that
            timm could not load them; or the file cannot be written.
    """
    have = to_plain_(deepcopy(model)).state_dict()
    wanted = create_model(arch, num_classes=0).state_dict()
    for key, like in wanted.items():
        if key not in have or have[key].shape != like.shape:
            found = f"has shape {tuple(have[key].shape)}, not {tuple(like.shape)}" if key in have else "is missing"
            raise InputError(
                f"{path.name}: the net is no {arch} as timm has it: its {key} {found}; nothing was written"
            )
    tensors = {key: have[key].detach().cpu().to(like.dtype).contiguous() for key, like in wanted.items()}
    said: dict[str, Any] = {"arch": arch} | ({} if cfg is None else {ENTRY: without_head(cfg)})
    said["digest"] = digest_of(said, tensors)
    replace_file(path, safetensors.torch.save(tensors, {KEY: json.dumps(said)}))
