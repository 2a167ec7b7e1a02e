"""BSQ's layers: a convolution and a linear layer whose weight is bit planes, or a latent float of fixed width.

The tensors, their two forms and the deviations from the authors' program are in `bsq.bit_layer`.
"""

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from bsq.bit_layer import BIAS, BitLayer
from lowbit.models.surgery import SHAPE, conv_like
from lowbit.quant.conv import check_plain, convolve, with_tensors


class BitConv2d(BitLayer):
    """nn.Conv2d (any stride, padding, dilation, groups, padding mode; timm's Conv2dSame too) with BSQ's tensors.

    Raises:
        InputError: a layer that is not an ordinary convolution (`lowbit.quant.conv.check_plain`).
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    groups: int

    def __init__(self, conv: nn.Conv2d, bits: int, bias_bits: int | None = None) -> None:
        check_plain(conv)
        super().__init__(conv.weight, conv.bias, bits, bits if bias_bits is None else bias_bits)
        self.same = isinstance(conv, Conv2dSame)
        for name in (*SHAPE, "_reversed_padding_repeated_twice"):
            setattr(self, name, getattr(conv, name))

    def extra_repr(self) -> str:
        """As nn.Conv2d's, for print(model)."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"groups={self.groups}, form={self.form}"
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        return convolve(self, x, self.effective(), self.effective_bias())

    @torch.no_grad()
    def to_plain(self) -> nn.Conv2d:
        """The ordinary convolution with the same weights (the authors' `to_float`: the scale is folded in)."""
        return with_tensors(conv_like(self), self.effective(), self.effective_bias())


class BitLinear(BitLayer):
    """nn.Linear with BSQ's tensors, weight and bias each with its own width.

    Raises:
        InputError: a layer that is not an ordinary linear layer (`lowbit.quant.conv.check_plain`).
    """

    def __init__(self, linear: nn.Linear, bits: int, bias_bits: int | None = None) -> None:
        check_plain(linear)
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
        plain = nn.Linear(self.in_features, self.out_features, device="meta")
        return with_tensors(plain, self.effective(), self.effective_bias())
