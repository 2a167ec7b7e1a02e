"""Convolution, linear layer and activation quantized uniformly, at bits that are tensors.

A layer keeps the keys `weight` and `bias`, and the parameters themselves, so that a state dict stays the float net's;
an activation adds its observer's range. Bits are buffers outside the state dict: a number (or a draw) copied into them
changes the next forward without recompiling it.

What a forward does is a Python string, `mode`, so that a compiled net has one graph for each mode in use:
`float`, `observe` (float, and the activations' ranges are watched) or `quantized`.
"""

from typing import Any, cast

import torch
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from timm.layers.padding import pad_same
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.quant.activations import FUNCTIONS
from lowbit.quant.layers import Codes
from lowbit.quant.observers import Observer, ObserverConfig
from lowbit.quant.uniform import WeightConfig, integer_codes, quantize_activation_range, quantize_weight, weight_grid

MODES = ("float", "observe", "quantized")


class WeightQuantizer(nn.Module):
    """The quantizer of a layer's weight.

    Attributes:
        w_bits: buffer, 0-dimensional; 0: float.
        pin: bits that replace whatever is drawn; None: what is drawn.
        mode: one of MODES; weights are quantized in `quantized` alone.
    """

    w_bits: Tensor

    def __init__(self, config: WeightConfig, pin: int | None = None) -> None:
        super().__init__()
        self.config, self.pin, self.mode = config, pin, "float"
        self.register_buffer("w_bits", torch.tensor(pin or 0), persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with, (out, ...)."""
        if self.mode != "quantized":
            return weight
        return quantize_weight(weight, self.w_bits, self.config)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """The weight at the bits of now, whatever the mode.

        Raises:
            InputError: at 0 bits there are no codes.
        """
        bits = int(self.w_bits)
        if not bits:
            raise InputError("this layer is float (0 bits), so it has no codes: set its bits first")
        grid = weight_grid(weight, self.w_bits, self.config)
        zero_point = torch.zeros_like(grid.scale, dtype=torch.int32)
        return Codes(integer_codes(weight, grid), grid.scale, zero_point, bits, signed=True)

    def extra_repr(self) -> str:
        """Pin and grid, for print(model)."""
        return f"pin={self.pin}, grid={self.config.grid}, per_channel={self.config.per_channel}"


class UniformConv2d(nn.Conv2d):
    """nn.Conv2d (timm's Conv2dSame too) with a quantized weight; takes over the parameters of `conv`.

    Raises:
        InputError: a subclass of Conv2d that computes something else with its weight (weight standardisation).
    """

    def __init__(self, conv: nn.Conv2d, config: WeightConfig, pin: int | None = None) -> None:
        kind = type(conv)
        plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
        if not (plain or kind is Conv2dSame):
            raise InputError(
                f"{kind.__name__} changes its weight before using it, which bits cannot follow: exclude it"
            )
        super().__init__(**_shape(conv), padding_mode=conv.padding_mode)
        self.weight, self.bias = conv.weight, conv.bias
        self.same = kind is Conv2dSame
        self.weight_quantizer = WeightQuantizer(config, pin)
        self.act_bits: int | None = None
        self.act_range: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        if self.same:
            x = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation))
        return self._conv_forward(x, self.weight_quantizer(self.weight), self.bias)

    def weight_codes(self) -> Codes:
        """See `lowbit.quant.layers`."""
        return self.weight_quantizer.codes(self.weight)

    def bias_codes(self) -> Codes | None:
        """None: biases stay float."""
        return None

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The ordinary convolution with the weights of this mode: quantized ones only in mode `quantized`."""
        kind: Any = Conv2dSame if self.same else nn.Conv2d
        mode = {} if self.same else {"padding_mode": self.padding_mode}
        plain = kind(**_shape(self), **mode)
        return cast(nn.Conv2d, _with_tensors(plain, self.weight_quantizer(self.weight), self.bias))


class UniformLinear(nn.Linear):
    """nn.Linear with a quantized weight; takes over the parameters of `linear`.

    Raises:
        InputError: a subclass of Linear whose weight is also used elsewhere (inside nn.MultiheadAttention).
    """

    def __init__(self, linear: nn.Linear, config: WeightConfig, pin: int | None = None) -> None:
        if type(linear) not in (nn.Linear, TimmLinear):
            raise InputError(f"{type(linear).__name__} is not used as an ordinary linear layer: exclude it")
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.weight_quantizer = WeightQuantizer(config, pin)
        self.act_bits: int | None = None
        self.act_range: float | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return nn.functional.linear(x, self.weight_quantizer(self.weight), self.bias)

    def weight_codes(self) -> Codes:
        """See `lowbit.quant.layers`."""
        return self.weight_quantizer.codes(self.weight)

    def bias_codes(self) -> Codes | None:
        """None: biases stay float."""
        return None

    @torch.no_grad()
    def to_plain(self) -> nn.Linear:
        """The ordinary linear layer with the weights of this mode: quantized ones only in mode `quantized`."""
        plain = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        return cast(nn.Linear, _with_tensors(plain, self.weight_quantizer(self.weight), self.bias))


class ObservedActivation(nn.Module):
    """An activation function and its asymmetric quantizer, in the place of the net's own activation module.

    Args:
        function: key of `lowbit.quant.activations.FUNCTIONS`.
        observer: sets the range in mode `observe`.
        pin: bits that replace whatever is drawn; None: what is drawn.

    Attributes:
        a_bits: buffer, 0-dimensional; 0: float.
        mode: one of MODES. Without an observed range `quantized` does nothing (`lowbit.quant.bitwidths.uncalibrated`).
    """

    a_bits: Tensor

    def __init__(self, function: str, observer: ObserverConfig, pin: int | None = None) -> None:
        super().__init__()
        self.function, self.pin, self.mode = function, pin, "float"
        self.observer = Observer(observer)
        self.register_buffer("a_bits", torch.tensor(pin or 0), persistent=False)

    @property
    def bits(self) -> int:
        """Bits of the output; 0: float (reads a tensor back, so never called in a step)."""
        return int(self.a_bits) if self.mode == "quantized" else 0

    @property
    def largest(self) -> Tensor:
        """Largest magnitude of the range."""
        return torch.maximum(self.observer.low.abs(), self.observer.high.abs())

    def extra_repr(self) -> str:
        """Function and pin, for print(model)."""
        return f"{self.function}, pin={self.pin}"

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; one range for all of it."""
        if self.mode == "quantized" and self.function == "relu":
            return quantize_activation_range(x, self.observer.low, self.observer.high, self.a_bits, relu=True)
        y = FUNCTIONS[self.function](x)
        if self.mode == "observe":
            self.observer(y, self.a_bits)
        if self.mode != "quantized":
            return y
        return quantize_activation_range(y, self.observer.low, self.observer.high, self.a_bits)


def _shape(conv: nn.Conv2d) -> dict[str, Any]:
    """The arguments that make a convolution like this one, without memory of its own."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, name) for name in names} | {"bias": conv.bias is not None, "device": "meta"}


def _with_tensors(layer: nn.Module, weight: Tensor, bias: Tensor | None) -> nn.Module:
    layer.register_parameter("weight", nn.Parameter(weight.clone()))
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
    return layer
