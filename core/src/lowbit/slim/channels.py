"""Which channels of a net belong together, read from one blank forward at full width.

The outputs of every convolution are followed through the net; those that meet in a sum, in a product or in a grouped
convolution are one group, which has one number of channels at any width.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lowbit.errors import InputError
from lowbit.models.surgery import run_blank

SLIMMED = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
LAYERS = (torch.conv2d, nn.functional.linear)  # functions whose outputs are channels of their own


class Groups(NamedTuple):
    """Groups of channels, each by the name of its first convolution.

    Attributes:
        inputs: {layer with tensors: group of its inputs; "" where they are there at any width}, as the layers run.
        outputs: {convolution: group of its outputs}.
        ratios: {group: what its number of channels is a multiple of}; 0 of "".
    """

    inputs: dict[str, str]
    outputs: dict[str, str]
    ratios: dict[str, int]


def channel_groups(net: nn.Module, input_size: tuple[int, int, int], fixed: nn.Module | None = None) -> Groups:
    """The groups of a net.

    Args:
        net: any; its convolutions and batch norms may be slimmed, and the linear layer behind them.
        input_size: (C, H, W) of a picture.
        fixed: a convolution whose outputs are there at any width.

    Raises:
        InputError: channels are put together in a way that cannot be followed, or a layer cannot be slimmed.
    """
    channels, found, handles = _Channels(), dict[str, str | None](), []
    names = {module: name for name, module in net.named_modules()}

    def source(args: tuple[Any, ...]) -> str | None:
        return channels.source(args[0]) if args else None

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        name, group = names[module], source(args)
        if found.setdefault(name, group) != group:
            raise InputError(f"{name} is used twice, on other channels")
        if group and not isinstance(module, SLIMMED):
            raise InputError(f"{name} ({type(module).__name__}) has weights for all channels, which cannot be slimmed")

    def after(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        name, group = names[module], source(args)
        if isinstance(module, nn.Conv2d) and module is not fixed:
            channels.mark(out, name)
            if module.groups > 1 and group:
                channels.join([group, name])

    for module in names:
        if isinstance(module, SLIMMED) or [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    with channels:
        run_blank(net, input_size, handles, values=False)
    layers = {name: net.get_submodule(name) for name in found}
    convs = {name: conv for name, conv in layers.items() if isinstance(conv, nn.Conv2d) and conv is not fixed}
    inputs = {name: (channels.group(group) if group else "") for name, group in found.items()}
    outputs = {name: channels.group(name) for name in convs}
    return Groups(inputs, outputs, _ratios(convs, inputs, outputs))


class _Channels(TorchFunctionMode):
    """Follows groups of channels through functions of tensors.

    Attributes:
        of: {id of a tensor: (the tensor, the layer whose outputs are its dimension 1)}.
        parent: {layer: another of its group}.
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
        """Group of a tensor's channels; None: they are there at any width."""
        found = self.of.get(id(x))
        return None if found is None else self.group(found[1])

    def join(self, names: Sequence[str]) -> str:
        """Make the groups of several layers one; its name."""
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


def _ratios(convs: Mapping[str, nn.Conv2d], inputs: Mapping[str, str], outputs: Mapping[str, str]) -> dict[str, int]:
    """See `Groups`: whole groups of a grouped convolution, the expansion of an inverted residual."""
    ratios, depthwise = dict.fromkeys(outputs.values(), 1) | {"": 0}, set()
    for name, conv in convs.items():
        each, group = conv.out_channels // conv.groups, outputs[name]
        if conv.groups > 1 and each > 1:
            ratios[group] = max(ratios[group], each // gcd(each, 8))
        elif conv.groups > 1:
            depthwise.add(group)
    for name, conv in convs.items():
        if outputs[name] in depthwise and conv.groups == 1 and inputs[name]:
            times, rest = divmod(conv.out_channels, conv.in_channels)
            ratios[outputs[name]] = times if times and not rest else 1
    return ratios
