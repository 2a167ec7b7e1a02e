"""Convolution and linear layer that compose an ordinary layer's tensors with quantizers of their weight and input.

Which layers are ordinary (`check_plain`) is decided by what they are, once for all methods: a layer whose weight is
computed from other tensors, or that computes something else with it, is refused in one line.
"""

from collections.abc import Collection
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from timm.layers.padding import pad_same
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from lowbit.errors import InputError
from lowbit.models.surgery import SHAPE, conv_like
from lowbit.quant.layers import ActivationQuantizer, Codes, Grid

Layer = TypeVar("Layer", bound=nn.Module)


class WeightQuantizer(Protocol):
    """A module that makes the weight to compute with, (out, ...), from the one that is trained."""

    def __call__(self, weight: Tensor) -> Tensor:
        """The weight to compute with; `torch.equal` to the values of `codes`."""
        ...

    def codes(self, weight: Tensor) -> Codes | None:
        """The same as codes; None where it is float."""
        ...


@runtime_checkable
class BiasScaler(Protocol):
    """A weight quantizer whose scale is the layer's output's, and so the bias's, too."""

    def bias(self, bias: Tensor) -> Tensor:
        """The bias to compute with."""
        ...


def check_plain(layer: nn.Module) -> None:
    """Refuse a layer that is not an ordinary convolution (timm's Conv2dSame too) or linear layer.

    Raises:
        InputError: its weight is no parameter of its own, it computes something else with it, or it has hooks.
    """
    kind = type(layer)
    for name in ("weight", "bias"):
        own = layer._parameters.get(name, ...)
        if own is ... or isinstance(own, nn.UninitializedParameter):
            raise InputError(
                f"its {name} is no parameter of its own (weight_norm, spectral_norm, pruning, a parametrization, a "
                "lazy layer), which a layer in its place cannot follow: make it one (remove_parametrizations, "
                "prune.remove), or exclude it"
            )
    if isinstance(layer, nn.Linear):
        forwards: tuple[Any, ...] = (nn.Linear.forward, TimmLinear.forward)
        if kind.forward not in forwards or isinstance(layer, NonDynamicallyQuantizableLinear):
            raise InputError(f"{kind.__name__} is not used as an ordinary linear layer: exclude it")
    else:
        forwards = (nn.Conv2d.forward, Conv2dSame.forward)
        if kind.forward not in forwards or kind._conv_forward is not nn.Conv2d._conv_forward:  # type: ignore[attr-defined]
            raise InputError(
                f"{kind.__name__} changes its weight before using it, which a layer in its place cannot follow: "
                "exclude it, or choose another net"
            )
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        raise InputError(f"this {kind.__name__} has hooks or a forward of its own, which would be lost: remove them")


def check_untied(model: nn.Module, names: Collection[str]) -> None:
    """Refuse layers whose parameters would no longer be shared once the named ones have others.

    Raises:
        InputError: a parameter of a named layer is also one of another module.
    """
    owners: dict[int, list[tuple[str, str]]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((name, key))
    for found in owners.values():
        if len(found) > 1 and any(name in names for name, _ in found):
            (one, key), (other, _) = found[:2]
            raise InputError(f"layers {one} and {other} share one {key}, which bits would untie: exclude both")


def convolve(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int | None = None) -> Tensor:
    """What a convolution computes with this weight and bias, (B, in, H, W) -> (B, out, H', W').

    Args:
        conv: has the attributes `SHAPE` of nn.Conv2d, and `same`: whether it pads as timm's Conv2dSame.
        x: input.
        weight: (out, in / groups, kH, kW).
        bias: (out,).
        groups: None: the convolution's.
    """
    padding = conv.padding
    if conv.same:
        x, padding = pad_same(x, list(conv.kernel_size), list(conv.stride), list(conv.dilation)), 0
    elif conv.padding_mode != "zeros":
        x, padding = F.pad(x, conv._reversed_padding_repeated_twice, mode=conv.padding_mode), 0
    return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation, groups or conv.groups)


def with_tensors(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    """A layer that was made without memory, given copies of these tensors as its parameters."""
    layer.register_parameter("weight", nn.Parameter(weight.detach().clone()))
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach().clone()))
    return layer


class _Quantized:
    """What QuantConv2d and QuantLinear share: the quantizers and the layer protocol."""

    weight: Any
    bias: Any
    weight_quantizer: WeightQuantizer | None
    input_quantizer: Any

    def _take_(self, layer: Any, weight_quantizer: WeightQuantizer | None, input_quantizer: nn.Module | None) -> None:
        self.weight, self.bias = layer.weight, layer.bias
        self.weight_quantizer, self.input_quantizer = weight_quantizer, input_quantizer

    def _input(self, x: Tensor) -> Tensor:
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def _weight(self) -> Tensor:
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def weight_codes(self) -> Codes | None:
        """See `lowbit.quant.layers`."""
        return None if self.weight_quantizer is None else self.weight_quantizer.codes(self.weight)

    def bias_codes(self) -> Codes | None:
        """None: biases stay float."""
        return None

    def input_grid(self) -> Grid | None:
        """The input quantizer's."""
        return self.input_quantizer.grid() if isinstance(self.input_quantizer, ActivationQuantizer) else None

    def _bias(self) -> Tensor | None:
        quantizer, bias = self.weight_quantizer, self.bias
        return quantizer.bias(bias) if bias is not None and isinstance(quantizer, BiasScaler) else bias

    def _plain_weight(self) -> Tensor:
        codes = self.weight_codes()
        return self._weight() if codes is None else codes.values().to(self.weight.dtype)


class QuantConv2d(_Quantized, nn.Conv2d):
    """An ordinary convolution under quantizers; takes over its parameter objects, and so the keys of its state dict.

    Args:
        conv: an nn.Conv2d or timm's Conv2dSame.
        weight_quantizer: a module; None: the weight is used as it is.
        input_quantizer: a module (`lowbit.quant.layers.ActivationQuantizer`) for this layer's input alone; None: the
            input is taken as it comes.

    Raises:
        InputError: see `check_plain`.
    """

    def __init__(
        self,
        conv: nn.Conv2d,
        weight_quantizer: WeightQuantizer | None = None,
        input_quantizer: nn.Module | None = None,
    ) -> None:
        check_plain(conv)
        shape: dict[str, Any] = {name: getattr(conv, name) for name in SHAPE}
        super().__init__(**shape, bias=conv.bias is not None, device="meta")
        self.same = isinstance(conv, Conv2dSame)
        self._take_(conv, weight_quantizer, input_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        return self.compute(self._input(x), self._weight(), self._bias())

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The convolution with other tensors, likewise."""
        return convolve(self, x, weight, bias)

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The ordinary convolution with the values of the codes; with the float weight where there are none."""
        return with_tensors(conv_like(self), self._plain_weight(), self._bias())


class QuantLinear(_Quantized, nn.Linear):
    """An ordinary linear layer under quantizers, as `QuantConv2d`.

    Raises:
        InputError: see `check_plain`; among them a layer whose weight is also used elsewhere (inside
            nn.MultiheadAttention).
    """

    def __init__(
        self,
        linear: nn.Linear,
        weight_quantizer: WeightQuantizer | None = None,
        input_quantizer: nn.Module | None = None,
    ) -> None:
        check_plain(linear)
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self._take_(linear, weight_quantizer, input_quantizer)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return self.compute(self._input(x), self._weight(), self._bias())

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The product with other tensors, likewise."""
        return F.linear(x, weight, bias)

    @torch.no_grad()
    def to_plain(self) -> nn.Linear:
        """The ordinary linear layer with the values of the codes; with the float weight where there are none."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return with_tensors(plain, self._plain_weight(), self._bias())
