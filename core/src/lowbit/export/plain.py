"""A net as it computes, with ordinary layers, in files that need no method's package.

`NAME.pt2` runs with torch alone. `NAME.safetensors` has timm's keys; `lowbit.load` reads it. `NAME.json` says what is
needed to run it, under the names of timm's own `config.json`: `architecture` and `model_args` are what
`timm.create_model` builds it by, where timm (with this house's nets) has a net of these sizes; else null.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.export.backbone import save_network
from lowbit.export.program import save_program
from lowbit.files import write_json
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import ENTRY, Cfg, without_head
from lowbit.quant.layers import to_plain_

STAGES = ("layer1", "layer2", "layer3", "layer4")


def timm_net(
    plain: nn.Module, arch: str, classes: int, width: float, size: tuple[int, int, int]
) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments by which timm builds a net that loads these tensors strictly and computes the same.

    A net of the same shapes need not: where rounding makes inputs and outputs of a block equal, timm adds a shortcut.

    Args:
        plain: of `lowbit.quant.layers.to_plain_`, in evaluation mode.
        arch: timm name of the whole net.
        classes: of the last layer; 0: it has none.
        width: share of the whole net's channels.
        size: (C, H, W) of a picture.

    Returns:
        None: timm has none.
    """
    state, x = plain.state_dict(), torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    for name, arguments in _candidates(plain, arch, width):
        try:
            with torch.device("meta"):
                shapes = create_model(name, num_classes=classes, **arguments).state_dict()
        except InputError:
            continue  # it does not take such arguments
        if {key: value.shape for key, value in shapes.items()} == {key: value.shape for key, value in state.items()}:
            net = create_model(name, num_classes=classes, **arguments).eval()
            net.load_state_dict(state)
            with torch.no_grad():
                if torch.allclose(net(x), plain(x), rtol=1e-4, atol=1e-5):
                    return name, arguments
    return None


def _candidates(plain: Any, arch: str, width: float) -> Iterator[tuple[str, dict[str, Any]]]:
    yield arch, {}
    if hasattr(plain, "conv_head"):
        yield arch, {"channel_multiplier": width}
        yield from ((name, {}) for name in timm.list_models("mobilenetv2_*"))
        return
    stages = [getattr(plain, name) for name in STAGES if hasattr(plain, name)]
    channels = [stage[0].conv1.out_channels for stage in stages]
    yield arch, {"widths": channels}
    if isinstance(plain.conv1, nn.Sequential):
        yield arch, {"channels": channels, "stem_width": plain.conv1[0].out_channels}


def save_plain(
    net: nn.Module, path: Path, arch: str, classes: int, cfg: Cfg, width: float, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the three files; returns what the JSON says.

    Args:
        net: on the CPU; quantized and slimmed layers allowed, at their bits and widths.
        path: of the files, without their endings; the folder exists.
        arch: timm name of the whole net.
        classes: of the last layer; 0: it has none, and the net gives features.
        cfg: how pictures are shown to it, and the classes' names.
        width: share of the whole net's channels.
        facts: more of what is said.

    Raises:
        InputError: torch cannot follow the net, or a file cannot be written.
    """
    plain, (c, h, w) = to_plain_(deepcopy(net)).eval(), cfg["input_size"]
    size = (c, h, w)
    name, arguments = timm_net(plain, arch, classes, width, size) or (None, {})
    said = {"architecture": name, "model_args": arguments, "num_classes": classes, "of": arch, "width": width, **facts}
    said[ENTRY] = cfg if classes else without_head(cfg)
    save_program(plain, path.with_name(f"{path.name}.pt2"), size, said)
    save_network(net, path.with_name(f"{path.name}.safetensors"), arch, classes, cfg)
    write_json(path.with_name(f"{path.name}.json"), said)
    return said
