"""A learned step for weights and inputs.

Esser, McKinstry, Bablani, Appuswamy, Modha, "Learned Step Size Quantization", ICLR 2020 (arXiv 1902.08153), Eq. 1-3:
y = s round(clip(x / s, -Q_N, Q_P)). Weights, and inputs with negative values, have Q_N = 2^(b-1), Q_P = 2^(b-1) - 1;
other inputs Q_N = 0, Q_P = 2^b - 1.

Gradients: x gets g where -Q_N < x / s < Q_P; at and beyond the bounds s alone does (`lowbit.quant.rounding`), its
gradient times 1 / sqrt(N Q_P), N the weights, or the inputs of one picture (so that parts of a batch add up to it).

Start: s = 2 mean |x| / sqrt(Q_P). The released variant: `lowbit.quant.learned.LearnedConfig`.
"""

import math

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.quant.layers import Codes, Grid
from lowbit.quant.learned import LearnedConfig, LearnedRange, positive, scale_gradient, sign_of, unset
from lowbit.quant.rounding import Levels, even_codes, quantize_evenly


class LsqStep(nn.Module):
    """The step, and whether codes have a sign (a buffer, so that files hold it)."""

    signed: Tensor

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.step = unset()
        self.register_buffer("signed", torch.ones(()))

    @torch.no_grad()
    def set_(self, x: Tensor, signed: Tensor) -> None:
        """The start from data."""
        self.signed.copy_(signed)
        self.step.copy_(positive(2 * x.abs().mean() / self._top().sqrt()))

    def _top(self) -> Tensor:
        """Q_P."""
        return 2.0**self.config.bits - 1 - self.signed * 2.0 ** (self.config.bits - 1)

    def levels(self) -> Levels:
        """Of -Q_N to Q_P."""
        top, edge = self._top(), "code" if self.config.released else "open"
        return Levels(top - (2.0**self.config.bits - 1), top, 0.0, edge)

    def forward(self, x: Tensor, count: int) -> Tensor:
        """The quantized `x`; `count` is N."""
        step = scale_gradient(positive(self.step), (self._top() * count).rsqrt())
        return quantize_evenly(x, step, self.levels())

    @torch.no_grad()
    def grid(self) -> Grid:
        """Reads the sign back."""
        zero = torch.zeros_like(self.step)
        return Grid(positive(self.step), zero, self.config.bits, signed=bool(self.signed))


class LsqWeight(nn.Module):
    """Weights, always signed.

    Raises:
        InputError: one bit, where Q_P is 0.
    """

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        if config.bits < 2:
            raise InputError("lsq has no 1-bit weights (its Q_P is 0): give 2 bits, or use ewgs or dorefa")
        self.of = LsqStep(config)

    def initialize_(self, weight: Tensor) -> None:
        """See the module's text."""
        self.of.set_(weight, torch.ones(()))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, ...)."""
        y: Tensor = self.of(weight, weight.numel())
        return y

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """The same as codes -2^(b-1) to 2^(b-1) - 1."""
        grid = self.of.grid()
        return Codes(even_codes(weight, grid.scale, self.of.levels()), grid)


class LsqInput(LearnedRange, nn.Module):
    """Inputs of any shape; codes start at 0 where the data that set the step had no negative value."""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.of = LsqStep(config)

    def initialize_(self, x: Tensor) -> None:
        """See the module's text."""
        self.of.set_(x, sign_of(x, self.config))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        y: Tensor = self.of(x, x.numel() if self.config.released else math.prod(x.shape[1:]))
        return y

    def grid(self) -> Grid:
        """Of the quantized input."""
        return self.of.grid()
