"""Make a net slimmable: its convolutions and batch norms, and the first layer of its classifier or projector; and back.

Yu, Huang, ICCV 2019; Cao, Sun, Zhou, CVPR 2023: ResNets and MobileNet-V2. The stem slims its outputs, the classifier
its inputs; MobileNet-V2's last convolution keeps its outputs and an ordinary batch norm. Other nets of timm are taken
where every sub-network holds (`lowbit.slim.channels`, then a blank forward at several widths), and refused where not;
of vision transformers the inputs of the blocks' linear layers are slimmed.
"""

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import nn

from lowbit.checkpoint.header import PictureSize
from lowbit.errors import InputError
from lowbit.models.surgery import of_kind, replace_, run_blank
from lowbit.quant.layers import to_plain_
from lowbit.slim.channels import channel_groups
from lowbit.slim.layers import SlimConv2d, SlimLinear, at_width, set_width_, slimmable_layers
from lowbit.slim.norms import SlimBatchNorm2d, SwitchableBatchNorm2d
from lowbit.slim.widths import Width

CHECKED = (0.15, 0.25, 0.4, 0.65, 0.9)  # widths of the blank forwards


def sub_network(net: nn.Module, width: Width) -> nn.Module:
    """An ordinary net that computes what a slimmable one computes at a width; its tensors are copies.

    Raises:
        InputError: a net that is not slimmable at a width below 1; a width that it cannot have.
    """
    with at_width(net, width):
        return to_plain_(deepcopy(net))


def without_statistics_(net: nn.Module) -> nn.Module:
    """Let batch norm of pictures normalise by the batch also in evaluation; returns the net."""
    for norm in of_kind(net, nn.BatchNorm2d).values():
        norm.track_running_stats = False
        norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return net


def slim_(net: nn.Module, input_size: PictureSize | None = None, switchable: Sequence[float] = ()) -> nn.Module:
    """Make a net slimmable in place; parameters stay the same objects, and so keys. Returns it, at full width.

    Args:
        net: a ResNet or MobileNet-V2 of timm or of this house, with a classifier, a projector or nothing at its end.
        input_size: (C, H, W) of a picture; None: the net's.
        switchable: widths that have a batch norm each (S-Nets; the net is then at the widest); none: one for all.

    Raises:
        InputError: a net, or a layer of it, for which slimming does not hold; it is left as it was.
    """
    cfg = getattr(net, "pretrained_cfg", None) or {}
    size = input_size or tuple(cfg.get("input_size", (3, 32, 32)))
    try:
        new = _slimmable(net, size, switchable)
        old = {name: net.get_submodule(name) for name in new}
        replace_(net, new)
        try:
            for width in switchable or CHECKED:
                _check_fit(net, size, width)
        except InputError:
            replace_(net, old)
            raise
    except InputError as error:
        raise InputError(f"{_name(net)} cannot be made slimmable: {error}") from error
    return set_width_(net, max(switchable, default=1.0))


def slim_inputs_(net: nn.Module) -> nn.Module:
    """Make a vision transformer slimmable in place: the inputs of its blocks' linear layers. Returns it, at full width.

    All else is there at every width: what the layers take their part of, and what they give. So a sub-network is no
    ordinary net: it runs and has its cost, and is not exported.

    Raises:
        InputError: a net without such blocks, or with layers that are not ordinary.
    """
    blocks: Any = getattr(net, "blocks", nn.Identity())
    layers = of_kind(blocks, nn.Linear)
    if not layers or of_kind(blocks, nn.Conv2d):
        raise InputError(f"{_name(net)} is no vision transformer (blocks of linear layers): `slim_` takes ResNets")
    new: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        try:
            new[f"blocks.{name}"] = SlimLinear(layer, (1, 0), leading=True)
        except InputError as error:
            raise InputError(f"{_name(net)} cannot be made slimmable: blocks.{name}: {error}") from error
    return replace_(net, new)


def slims_inputs(net: nn.Module) -> bool:
    """Whether a net was made slimmable by `slim_inputs_`, and so has no ordinary sub-networks."""
    return any(getattr(layer, "leading", False) for layer in slimmable_layers(net).values())


def _name(net: nn.Module) -> str:
    name: str = (getattr(net, "pretrained_cfg", None) or {}).get("architecture") or type(net).__name__
    return name


def _check_fit(net: nn.Module, size: PictureSize, width: float) -> None:
    """Refuse a net whose layers do not fit each other at a width."""
    try:
        with at_width(net, width):
            run_blank(net, size, values=False)
    except InputError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"at width {width:g} its layers do not fit each other ({reason:.150})") from error


def _slimmable(net: nn.Module, size: PictureSize, switchable: Sequence[float]) -> dict[str, nn.Module]:
    """The slimmable layers that replace those of a net, by name."""
    fixed: Any = getattr(net, "conv_head", None)  # MobileNet-V2's
    groups = channel_groups(net, size, fixed)
    new: dict[str, nn.Module] = {}
    for name, source in groups.inputs.items():
        layer: Any = net.get_submodule(name)
        own = groups.outputs.get(name, "")
        if not source and not own:
            continue
        ratios = groups.ratios[source], groups.ratios[own]
        made: Any
        try:
            if isinstance(layer, nn.Conv2d):
                made = SlimConv2d(layer, ratios)
            elif isinstance(layer, nn.Linear):
                made = SlimLinear(layer, ratios)
            elif switchable:
                made = SwitchableBatchNorm2d(layer, switchable, ratios[0])
            else:
                made = SlimBatchNorm2d(layer, ratios[0])
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
        made.groups_of = source, own
        new[name] = made
    if not new:
        raise InputError("it has no convolution")
    return new
