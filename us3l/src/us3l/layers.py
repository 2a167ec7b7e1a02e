"""Slimmable layers: an ordinary layer that computes with its leading channels.

Yu, Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019, Sec. 3: channels of all widths
are nested, so one weight serves them all. Which part runs is a plain attribute, set from outside (`at_width`); what
`forward` reads are numbers of channels, so that widths which round to the same numbers share one compiled graph. The
gradient outside the part that runs is exactly zero, never None: momentum and weight decay move those channels on every
pass, as in the authors' program.

Deviation: a grouped convolution keeps the channels of a group and runs fewer groups (the authors' ignore groups unless
the convolution is depthwise). A number of channels never exceeds the layer's.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import SHAPE, conv_like
from lowbit.quant.conv import check_plain, convolve, with_tensors
from us3l.widths import Width, channels_at, check_width


@runtime_checkable
class Slimmable(Protocol):
    """A layer that runs at a width.

    Attributes:
        width: (of the input, of the output). groups_of: names of the groups of channels that these belong to, "" where
            all of a side runs at any width; layers whose channels meet in a sum have the same.
    """

    width: tuple[float, float]
    groups_of: tuple[str, str]

    def set_width_(self, of_input: float, of_output: float) -> None:
        """Run at these widths from now on."""
        ...

    def sides(self) -> list[tuple[int, int]]:
        """(channels, ratio) of each side that is slimmed."""
        ...


class NoCodes:
    """What slimmable layers say to the layer protocol (`lowbit.quant.layers`): all is float."""

    def weight_codes(self) -> None:
        """None: float."""

    def bias_codes(self) -> None:
        """None: float."""

    def input_grid(self) -> None:
        """None: float."""


class _Slim(NoCodes):
    """What SlimConv2d and SlimLinear share: how many channels run."""

    weight: Any
    bias: Any
    width: tuple[float, float] = (1.0, 1.0)
    groups_of: tuple[str, str] = ("", "")
    groups: int = 1

    def _take_(self, layer: Any, slim: tuple[bool, bool], ratio: tuple[int, int]) -> None:
        self.weight, self.bias, self.slim, self.ratio = layer.weight, layer.bias, slim, ratio
        self.set_width_(1.0, 1.0)

    def _full(self) -> tuple[int, int]:
        raise NotImplementedError

    def sides(self) -> list[tuple[int, int]]:
        """(channels, ratio) of each side that is slimmed."""
        return [side for side, slim in zip(zip(self._full(), self.ratio, strict=True), self.slim, strict=True) if slim]

    def channels(self, of_input: float, of_output: float) -> tuple[int, int]:
        """Numbers of channels (in, out) at these widths."""
        (inputs, outputs), (times_in, times_out) = self._full(), self.ratio
        return (
            channels_at(inputs, of_input, times_in) if self.slim[0] else inputs,
            channels_at(outputs, of_output, times_out) if self.slim[1] else outputs,
        )

    def set_width_(self, of_input: float, of_output: float) -> None:
        """Run at these widths from now on."""
        self.width = of_input, of_output
        self.active_in, self.active_out = self.channels(of_input, of_output)

    def _weight(self) -> Tensor:
        """(out, in / groups, ...) of the channels that run."""
        weight: Tensor = self.weight
        inputs = self.active_in if self.groups == 1 else weight.shape[1]
        full = (self.active_out, inputs) == weight.shape[:2]  # its gradient then needs no copy
        return weight if full else weight[: self.active_out, :inputs]

    def _bias(self) -> Tensor | None:
        bias: Tensor | None = self.bias
        return bias if bias is None or self.active_out == len(bias) else bias[: self.active_out]


class SlimConv2d(_Slim, nn.Conv2d):
    """A slimmable convolution; takes over an ordinary one's parameter objects, and so the keys of its state dict.

    Args:
        conv: an nn.Conv2d or timm's Conv2dSame; with groups, fewer groups run.
        slim: whether (the input, the output) is slimmed.
        ratio: of the numbers of channels (`channels_at`) of (the input, the output).

    Attributes:
        active_in, active_out: channels that run.

    Raises:
        InputError: no ordinary convolution (`lowbit.quant.conv.check_plain`).
    """

    def __init__(
        self, conv: nn.Conv2d, slim: tuple[bool, bool] = (True, True), ratio: tuple[int, int] = (1, 1)
    ) -> None:
        check_plain(conv)
        shape: dict[str, Any] = {name: getattr(conv, name) for name in SHAPE}
        super().__init__(**shape, bias=conv.bias is not None, device="meta")
        self.same = isinstance(conv, Conv2dSame)
        self._take_(conv, slim, ratio)

    def _full(self) -> tuple[int, int]:
        return self.in_channels, self.out_channels

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


class SlimLinear(_Slim, nn.Linear):
    """A slimmable linear layer, as `SlimConv2d`.

    Args:
        linear: an ordinary one. slim, ratio: as of `SlimConv2d`.
        leading: the input has all features at every width, and the layer takes its part of it.

    Raises:
        InputError: no ordinary linear layer (`lowbit.quant.conv.check_plain`).
    """

    def __init__(
        self, linear: nn.Linear, slim: tuple[bool, bool] = (True, True), ratio: tuple[int, int] = (1, 1),
        leading: bool = False,
    ) -> None:  # fmt: skip
        check_plain(linear)
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.leading = leading
        self._take_(linear, slim, ratio)

    def _full(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    def forward(self, x: Tensor) -> Tensor:
        """(..., active_in) -> (..., active_out)."""
        return F.linear(x[..., : self.active_in] if self.leading else x, self._weight(), self._bias())

    @torch.no_grad()
    def to_plain(self) -> nn.Linear:
        """The ordinary linear layer of the features that run; a `LeadingLinear` where the input has more."""
        kind = LeadingLinear if self.leading and self.active_in < self.in_features else nn.Linear
        plain = kind(self.active_in, self.active_out, self.bias is not None, device="meta")
        return with_tensors(plain, self._weight(), self._bias())


def slimmable_layers(net: nn.Module) -> dict[str, Slimmable]:
    """The slimmable layers by name, in the order of the modules."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Slimmable)}


def set_width_(net: nn.Module, width: Width) -> nn.Module:
    """Let every slimmable layer of a net run at a width; returns the net.

    Args:
        net: of `slim_`, or any module that holds such nets or single layers.
        width: share in (0, 1]; or the share of each convolution's outputs by its name, all of them.

    Raises:
        InputError: a width that is not in (0, 1]; a name that is missing or unknown; two layers whose outputs are added
            to each other and would have different numbers of channels.
    """
    layers = slimmable_layers(net)
    if not isinstance(width, Mapping):
        check_width(width)
        for layer in layers.values():
            layer.set_width_(width, width)
        return net
    first: dict[str, tuple[str, float]] = {}
    of: dict[str, Any] = {name: layer for name, layer in layers.items() if layer.groups_of[1]}
    _check_names(width, list(of))
    for name, layer in of.items():
        other, there = first.setdefault(layer.groups_of[1], (name, check_width(width[name])))
        counts = [of[which].channels(1.0, width[which])[1] for which in (other, name)]
        if counts[0] != counts[1]:
            raise InputError(
                f"{other} and {name} must have the same number of channels, since their outputs meet: widths "
                f"{there:g} and {width[name]:g} give {counts[0]} and {counts[1]}"
            )
    for layer in layers.values():
        layer.set_width_(*(first[group][1] if group else 1.0 for group in layer.groups_of))
    return net


def _check_names(widths: Mapping[str, float], names: list[str]) -> None:
    """Refuse widths by layer that leave out a name, or have another one."""
    if not names:
        raise InputError("this net has no widths by layer: give one for all of it")
    missing = next((name for name in names if name not in widths), None)
    unknown = next((name for name in widths if name not in names), None)
    if missing is not None:
        raise InputError(f"the widths by layer leave out {missing}: give every convolution a width ({len(names)} here)")
    if unknown is not None:
        near = ", ".join(get_close_matches(unknown, names, n=3)) or ", ".join(names[:3])
        raise InputError(f"the widths by layer name {unknown!r}, which has no width of its own; did you mean {near}?")


@contextmanager
def at_width(net: nn.Module, width: Width) -> Iterator[None]:
    """Let a net run at a width inside a block, as `set_width_`; then as before."""
    before = {layer: layer.width for layer in slimmable_layers(net).values()}
    set_width_(net, width)
    try:
        yield
    finally:
        for layer, widths in before.items():
            layer.set_width_(*widths)
