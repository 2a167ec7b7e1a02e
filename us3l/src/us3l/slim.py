"""Make a net slimmable: `slim_` replaces its convolutions, batch norms and the first layer of its classifier.

Which channels belong together is read from one blank forward at full width: the outputs of every convolution are
followed through the net, and those that meet in a sum, a product or a depthwise convolution are one group. A group runs
at one width, with one number of channels. Nets in which channels are put together or mixed in another way are refused.

Yu, Huang, ICCV 2019; Cao, Sun, Zhou, CVPR 2023: ResNets and MobileNet-V2. The stem slims its outputs, the classifier
(or projector) its inputs; MobileNet-V2's last convolution keeps its outputs and an ordinary batch norm.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lowbit.errors import InputError
from lowbit.models.surgery import replace_, run_blank
from us3l.layers import SlimConv2d, SlimLinear, at_width, set_width_
from us3l.norms import SlimBatchNorm2d, SwitchableBatchNorm2d

LAYERS = (torch.conv2d, nn.functional.linear)  # functions of a layer, whose outputs are channels of its own
CHECKED = (0.15, 0.25, 0.4, 0.65, 0.9)  # widths of the blank forwards after the conversion


class _Channels(TorchFunctionMode):
    """Follows groups of channels through functions of tensors.

    Attributes:
        of: {id of a tensor: (the tensor, the layer whose outputs are its dimension 1)}.
        parent: of a layer in its group.
    """

    def __init__(self) -> None:
        super().__init__()
        self.of: dict[int, tuple[Tensor, str]] = {}
        self.parent: dict[str, str] = {}

    def group(self, name: str) -> str:
        """The first layer of a layer's group."""
        while name in self.parent:
            name = self.parent[name]
        return name

    def source(self, x: Any) -> str | None:
        """Group of the tensor's channels; None: they are there at any width."""
        found = self.of.get(id(x))
        return None if found is None else self.group(found[1])

    def join(self, names: Sequence[str]) -> str:
        """Make several groups one; its name."""
        first, *others = dict.fromkeys(map(self.group, names))
        for other in others:
            self.parent[other] = first
        return first

    def mark(self, x: Tensor, name: str) -> None:
        """Say whose outputs a tensor's channels are."""
        self.of[id(x)] = x, name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function; its result has the channels of its arguments."""
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        channels = {id(x): x.shape[1] for x in inputs if id(x) in self.of}
        out = func(*args, **(kwargs or {}))
        if channels and func not in LAYERS:
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            for y in tensors:
                if y.dim() < 2 or len(tensors) > 1 or {y.shape[1]} != set(channels.values()):
                    name = getattr(func, "__name__", str(func))
                    raise InputError(f"it puts channels together in another way ({name}), which slimming cannot follow")
                self.mark(y, self.join([self.of[key][1] for key in channels]))
        return out


def slim_(
    net: nn.Module, input_size: tuple[int, int, int] | None = None, switchable: Sequence[float] = ()
) -> nn.Module:
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
        new = _slimmed(net, size, switchable)
        old = {name: net.get_submodule(name) for name in new}
        replace_(net, new)
        try:
            for width in switchable or CHECKED:
                _check_fit(net, size, width)
        except InputError:
            replace_(net, old)
            raise
    except InputError as error:
        name = cfg.get("architecture") or type(net).__name__
        raise InputError(f"{name} cannot be made slimmable: {error}") from error
    return set_width_(net, max(switchable, default=1.0))


def _check_fit(net: nn.Module, size: tuple[int, int, int], width: float) -> None:
    """Refuse a net whose layers do not fit each other at a width."""
    try:
        with at_width(net, width):
            run_blank(net, size, values=False)
    except InputError as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"at width {width:g} its layers do not fit each other ({reason:.150})") from error


def _slimmed(net: nn.Module, size: tuple[int, int, int], switchable: Sequence[float]) -> dict[str, nn.Module]:
    """The slimmable layers that replace those of a net, by name."""
    channels, inputs, handles = _Channels(), dict[str, str | None](), []
    names = {module: name for name, module in net.named_modules()}
    fixed = getattr(net, "conv_head", None)  # MobileNet-V2's

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        name, source = names[module], channels.source(args[0]) if args else None
        if inputs.setdefault(name, source) != source:
            raise InputError(f"{name} is used twice, on other channels")
        if source and not isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            raise InputError(f"{name} ({type(module).__name__}) has weights for all channels, which cannot be slimmed")

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        name, source = names[module], channels.source(args[0]) if args else None
        if isinstance(module, nn.Conv2d) and module is not fixed:
            channels.mark(out, name)
            if module.groups > 1 and source:
                channels.join([source, name])

    for module in names:
        if [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with channels:
        run_blank(net, size, handles, values=False)
    layers: dict[str, Any] = {name: net.get_submodule(name) for name in inputs}
    of = {name: (channels.group(source) if source else "") for name, source in inputs.items()}
    to = {name: channels.group(name) for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    ratios = _ratios(layers, of, to)
    new: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        source, own = of[name], "" if layer is fixed else to.get(name, "")
        ratio = ratios.get(source, 1), ratios.get(own, 1)
        slim = bool(source), bool(own)
        made: Any
        if isinstance(layer, nn.Conv2d):
            made = SlimConv2d(layer, slim, ratio)
        elif not source:
            continue
        elif isinstance(layer, nn.Linear):
            made = SlimLinear(layer, slim, ratio)
        else:
            made = (
                SwitchableBatchNorm2d(layer, switchable, ratio[0]) if switchable else SlimBatchNorm2d(layer, ratio[0])
            )
        made.groups_of = source, own
        new[name] = made
    return new


def _ratios(layers: Mapping[str, Any], of: Mapping[str, str], to: Mapping[str, str]) -> dict[str, int]:
    """Of each group of channels, what its number is a multiple of beside 8.

    Args:
        layers: by name.
        of: the group of a layer's inputs.
        to: the group of a convolution's outputs.
    """
    ratios: dict[str, int] = {}
    for name, group in to.items():
        conv = layers[name]
        each = conv.out_channels // conv.groups
        if conv.groups > 1 and each > 1:
            ratios[group] = max(ratios.get(group, 1), each // gcd(each, 8))
    depthwise = {to[name] for name in to if layers[name].groups == layers[name].out_channels > 1}
    for name, group in to.items():  # an inverted residual widens its input by a whole number
        conv = layers[name]
        if group in depthwise and conv.groups == 1 and of[name]:
            times, rest = divmod(conv.out_channels, conv.in_channels)
            ratios[group] = times if times and not rest else 1
    return ratios
