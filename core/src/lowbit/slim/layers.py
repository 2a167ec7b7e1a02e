"""Slimmable layers: an ordinary layer that computes with its leading channels.

Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019, Sec. 3: channels of all widths
are nested, so one weight serves them all. Which part runs is a plain attribute, set from outside (`at_width`); what
`forward` reads are numbers of channels, so that widths which round to the same numbers share one compiled graph. The
gradient outside the part that runs is exactly zero, never None: momentum and weight decay move those channels on every
pass, as in the paper's program.

Deviation: a grouped convolution keeps the channels of a group and runs fewer groups (the paper's program ignores
groups unless the convolution is depthwise). A number of channels never exceeds the layer's.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import SHAPE, conv_like
from lowbit.quant.conv import check_plain, convolve, with_tensors
from lowbit.slim.widths import Width, channels_at, check_width

Pair = tuple[int, int]  # of a layer's input and output


class Slim:
    """What slimmable layers share. To the layer protocol (`lowbit.quant.layers`) they say that all is float.

    Attributes:
        full: channels of the input and of the output.
        ratios: of their numbers (`lowbit.slim.widths.channels_at`); 0: all of them run at any width.
        groups_of: names of their groups (`lowbit.slim.channels`), "" where there is none.
        width: of each; active_in, active_out: channels that run.
    """

    full: Pair
    ratios: Pair
    groups_of: tuple[str, str] = ("", "")
    width: tuple[float, float] = (1.0, 1.0)
    active_in: int
    active_out: int

    def channels(self, of_input: float, of_output: float) -> Pair:
        """Channels that run at these widths."""
        sides = zip(self.full, (of_input, of_output), self.ratios, strict=True)
        inputs, outputs = (channels_at(*side) if side[2] else side[0] for side in sides)
        return inputs, outputs

    def set_width_(self, of_input: float, of_output: float) -> None:
        """Run at these widths from now on."""
        own = vars(self)  # nn.Module.__setattr__ would take most of the time of `at_width`
        if own.get("width") != (of_input, of_output):
            inputs, outputs = self.channels(of_input, of_output)
            own.update(width=(of_input, of_output), active_in=inputs, active_out=outputs)

    def weight_codes(self) -> None:
        """None, as the codes of biases and the grid of inputs."""

    bias_codes = input_grid = weight_codes


class _Weighted(Slim):
    """What SlimConv2d and SlimLinear share: the part of the tensors that runs."""

    weight: Any
    bias: Any
    groups: int = 1

    def _take_(self, layer: Any, full: Pair, ratios: Pair) -> None:
        check_plain(layer)
        self.weight, self.bias, self.full, self.ratios = layer.weight, layer.bias, full, ratios
        self.set_width_(1.0, 1.0)

    def _weight(self) -> Tensor:
        """(out, in / groups, ...) of the channels that run."""
        weight: Tensor = self.weight
        inputs = self.active_in if self.groups == 1 else weight.shape[1]
        full = (self.active_out, inputs) == weight.shape[:2]  # its gradient then needs no copy
        return weight if full else weight[: self.active_out, :inputs]

    def _bias(self) -> Tensor | None:
        bias: Tensor | None = self.bias
        return bias if bias is None or self.active_out == len(bias) else bias[: self.active_out]


class SlimConv2d(_Weighted, nn.Conv2d):
    """A slimmable convolution; takes over an ordinary one's parameter objects, and so the keys of its state dict.

    Args:
        conv: an nn.Conv2d or timm's Conv2dSame; with groups, fewer groups run.
        ratios: see `Slim`.

    Raises:
        InputError: no ordinary convolution (`lowbit.quant.conv.check_plain`).
    """

    def __init__(self, conv: nn.Conv2d, ratios: Pair = (1, 1)) -> None:
        shape: dict[str, Any] = {name: getattr(conv, name) for name in SHAPE}
        super().__init__(**shape, bias=conv.bias is not None, device="meta")
        self.same = isinstance(conv, Conv2dSame)
        self._take_(conv, (conv.in_channels, conv.out_channels), ratios)

    def _groups(self) -> int:
        return 1 if self.groups == 1 else self.active_in * self.groups // self.in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, active_in, H, W) -> (B, active_out, H', W')."""
        return convolve(self, x, self._weight(), self._bias(), self._groups())

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The ordinary convolution of the channels that run."""
        sizes = {"in_channels": self.active_in, "out_channels": self.active_out, "groups": self._groups()}
        return with_tensors(conv_like(self, **sizes), self._weight(), self._bias())


class LeadingLinear(nn.Linear):
    """A linear layer that computes with the leading features of a wider input."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features or more) -> (..., out_features)."""
        return F.linear(x[..., : self.in_features], self.weight, self.bias)


class SlimLinear(_Weighted, nn.Linear):
    """A slimmable linear layer, as `SlimConv2d`.

    Args:
        linear: an ordinary one.
        ratios: see `Slim`.
        leading: the input has all features at every width, and the layer takes its part of it.

    Raises:
        InputError: no ordinary linear layer (`lowbit.quant.conv.check_plain`).
    """

    def __init__(self, linear: nn.Linear, ratios: Pair = (1, 1), leading: bool = False) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.leading = leading
        self._take_(linear, (linear.in_features, linear.out_features), ratios)

    def forward(self, x: Tensor) -> Tensor:
        """(..., active_in) -> (..., active_out)."""
        return F.linear(x[..., : self.active_in] if self.leading else x, self._weight(), self._bias())

    @torch.no_grad()
    def to_plain(self) -> nn.Linear:
        """The ordinary linear layer of the features that run; a `LeadingLinear` where the input has more."""
        kind = LeadingLinear if self.leading and self.active_in < self.in_features else nn.Linear
        plain = kind(self.active_in, self.active_out, self.bias is not None, device="meta")
        return with_tensors(plain, self._weight(), self._bias())


def slimmable_layers(net: nn.Module) -> dict[str, Any]:
    """The slimmable layers by name, in the order of the modules."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Slim)}


def set_width_(net: nn.Module, width: Width) -> nn.Module:
    """Let every slimmable layer of a net run at a width; returns the net.

    Args:
        net: of `slim_`, or any module that holds such nets or single layers.
        width: share in (0, 1]; or the share of each convolution's outputs by its name, all of them.

    Raises:
        InputError: a width outside (0, 1] or the list of an S-Net; a name that is missing or unknown; two convolutions
            whose outputs meet and would have different numbers of channels. The net then runs as before.
    """
    _run_at_(net, width)
    return net


@contextmanager
def at_width(net: nn.Module, width: Width) -> Iterator[None]:
    """Let a net run at a width inside a block, as `set_width_`; then as before."""
    before = _run_at_(net, width)
    try:
        yield
    finally:
        for layer, former in before:
            layer.set_width_(*former)


def _run_at_(net: nn.Module, width: Width) -> Sequence[tuple[Slim, tuple[float, float]]]:
    """See `set_width_`; returns the layers with their former widths."""
    before = [(module, module.width) for module in net.modules() if isinstance(module, Slim)]
    of_group = _width_of_groups(slimmable_layers(net), width) if isinstance(width, Mapping) else None
    same = 1.0 if isinstance(width, Mapping) else check_width(width)
    try:
        for layer, _ in before:
            widths = (same, same) if of_group is None else (of_group.get(group, 1.0) for group in layer.groups_of)
            layer.set_width_(*widths)
    except InputError:
        for layer, former in before:
            layer.set_width_(*former)
        raise
    return before


def _width_of_groups(layers: Mapping[str, Any], widths: Mapping[str, float]) -> dict[str, float]:
    """Of each group of channels, from the widths of the convolutions that give them; checked."""
    own = {name: layer for name, layer in layers.items() if layer.groups_of[1]}
    if not own:
        raise InputError("this net has no widths by layer: give one for all of it")
    if unknown := next((name for name in widths if name not in own), None):
        near = ", ".join(get_close_matches(unknown, own, n=3) or list(own)[:3])
        raise InputError(f"the widths by layer name {unknown!r}, which has no width of its own; did you mean {near}?")
    if missing := next((name for name in own if name not in widths), None):
        raise InputError(f"the widths by layer leave out {missing}: give every convolution a width ({len(own)} here)")
    first: dict[str, str] = {}
    for name, layer in own.items():
        other = first.setdefault(layer.groups_of[1], name)
        counts = [own[which].channels(1.0, check_width(widths[which]))[1] for which in (other, name)]
        if counts[0] != counts[1]:
            raise InputError(
                f"{other} and {name} must have the same number of channels, since their outputs meet: widths "
                f"{widths[other]:g} and {widths[name]:g} give {counts[0]} and {counts[1]}"
            )
    return {group: widths[name] for group, name in first.items()}
