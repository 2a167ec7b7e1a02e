"""BSQ's layers: a convolution and a linear layer whose weight is bit planes, or a latent float of fixed width.

The tensors, their two forms and the deviations from the authors' program are in `bsq.forms`.
"""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from timm.layers import Linear as TimmLinear
from timm.layers.padding import pad_same
from torch import Tensor, nn

from bsq.forms import BIAS, BitLayer
from lowbit.errors import InputError

Layer = TypeVar("Layer", bound=nn.Module)


class BitConv2d(BitLayer):
    """nn.Conv2d (any stride, padding, dilation, groups, padding mode; timm's Conv2dSame too) with BSQ's tensors.

    Raises:
        InputError: a subclass of Conv2d that computes something else with its weight (weight standardisation).
    """

    def __init__(self, conv: nn.Conv2d, bits: int, bias_bits: int | None = None) -> None:
        kind = type(conv)
        plain = kind.forward is nn.Conv2d.forward and kind._conv_forward is nn.Conv2d._conv_forward
        if not (plain or kind is Conv2dSame):
            raise InputError(
                f"{kind.__name__} changes its weight before using it, which bits cannot follow: exclude it"
            )
        super().__init__(conv.weight, conv.bias, bits, bits if bias_bits is None else bias_bits)
        self.same = kind is Conv2dSame
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.padding, self.padding_mode, self.groups = conv.padding, conv.padding_mode, conv.groups
        self._border = list(conv._reversed_padding_repeated_twice)

    def extra_repr(self) -> str:
        """As nn.Conv2d's, for print(model)."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, form={self.form}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        padding: Any = self.padding
        if self.same:
            x, padding = pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)), 0
        elif self.padding_mode != "zeros":
            x, padding = F.pad(x, self._border, mode=self.padding_mode), 0
        weight, bias = self.effective(), self.effective_bias()
        return F.conv2d(x, weight, bias, self.stride, padding, self.dilation, self.groups)

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The ordinary convolution with the same weights (the authors' `to_float`: the scale is folded in)."""
        kind: Any = Conv2dSame if self.same else nn.Conv2d
        weight, bias = self.effective(), self.effective_bias()
        mode = {} if self.same else {"padding_mode": self.padding_mode}
        conv = kind(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=bias is not None,
            device="meta",
            **mode,
        )
        return _with_tensors(conv, weight, bias)


class BitLinear(BitLayer):
    """nn.Linear with BSQ's tensors, weight and bias each with its own width.

    Raises:
        InputError: a subclass of Linear whose weight is also used elsewhere (inside nn.MultiheadAttention).
    """

    def __init__(self, linear: nn.Linear, bits: int, bias_bits: int | None = None) -> None:
        if type(linear) not in (nn.Linear, TimmLinear):
            raise InputError(f"{type(linear).__name__} is not used as an ordinary linear layer: exclude it")
        super().__init__(linear.weight, linear.bias, bits, bits if bias_bits is None else bias_bits)
        self.in_features, self.out_features = linear.in_features, linear.out_features

    def extra_repr(self) -> str:
        """As nn.Linear's, for print(model)."""
        return f"{self.in_features}, {self.out_features}, bias={BIAS in self.tensors}, form={self.form}"

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        return F.linear(x, self.effective(), self.effective_bias())

    @torch.no_grad()
    def to_plain(self) -> nn.Linear:
        """The ordinary linear layer with the same weights and bias."""
        weight, bias = self.effective(), self.effective_bias()
        linear = nn.Linear(self.in_features, self.out_features, bias=bias is not None, device="meta")
        return _with_tensors(linear, weight, bias)


def _with_tensors(layer: Layer, weight: Tensor, bias: Tensor | None) -> Layer:
    layer.register_parameter("weight", nn.Parameter(weight.clone()))
    layer.register_parameter("bias", None if bias is None else nn.Parameter(bias.clone()))
    return layer
