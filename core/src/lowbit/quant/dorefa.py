"""Weights by their hyperbolic tangent, inputs clipped to a fixed range; nothing is learned.

Zhou, Wu, Ni, Zhou, Wen, Zou, "DoReFa-Net: Training Low Bitwidth Convolutional Neural Networks with Low Bitwidth
Gradients", arXiv 1606.06160, Eq. 7-11. L = 2^b levels:

    weights: w_hat = 2 round((L - 1) (tanh(w) / (2 max |tanh(w)|) + 1/2)) / (L - 1) - 1;  1 bit: mean |w| sign(w)
    inputs:  round((L - 1) clip(x, 0, 1)) / (L - 1);  those with negative values: L levels from -1 to 1

Gradients: straight through the rounding; through tanh and the maximum as they are (1 bit: g); inputs get g on the
range, bounds included, and 0 beyond. A picture's result does not depend on the others in its batch.

The released variant: both as u = tanh(x) / (max |tanh(x)| + 1e-5), signed codes, the largest |u| at (L - 1) / 2 steps;
for inputs the maximum is that of the batch, in evaluation too. (Its programs keep the step of the first batch, which
equals this one to 1e-5.)
"""

import torch
from torch import Tensor, nn

from lowbit.quant.layers import Codes, Grid
from lowbit.quant.learned import LearnedConfig, LearnedRange, scale_gradient, sign_of
from lowbit.quant.rounding import Levels, constant, even_codes, even_levels, quantize_evenly

SOFTENED = 1e-5  # of the released variant


class DorefaWeight(nn.Module):
    """Weights (out, ...)."""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, weight: Tensor) -> Tensor:
        """(out, ...)."""
        x, step, levels, low, rate = self._grid(weight)
        return quantize_evenly(x, step, levels, low, rate)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """The same as codes 0 to L - 1 about (L - 1) / 2 (released: -L / 2 to L / 2 - 1 about 0)."""
        x, step, levels, low, rate = self._grid(weight)
        zero_point = torch.as_tensor(levels.zero_point).to(step)
        grid = Grid(step, zero_point, self.config.bits, signed=self.config.released)
        return Codes(even_codes(x, step, levels, low, rate), grid)

    def _grid(self, weight: Tensor) -> tuple[Tensor, Tensor, Levels, Tensor | None, Tensor | None]:
        """What is rounded, its step, levels, low end and rate."""
        if self.config.released:
            return *_softened(weight, self.config.bits), None, None
        levels = even_levels(self.config.bits, centred=True)
        if self.config.bits == 1:
            largest = _largest(weight.detach())
            mean = weight.detach().abs().mean()
            return scale_gradient(weight, largest / mean), 2 * mean, levels, -largest, 1 / (2 * largest)
        t = torch.tanh(weight)
        low, step = constant(-1.0, weight), constant(2 / (2**self.config.bits - 1), weight)
        return t / _largest(t), step, levels, low, 1 / step


class DorefaInput(LearnedRange, nn.Module):
    """Inputs of any shape; `signed` (NaN until data have set it) is a buffer, so that files hold it."""

    signed: Tensor

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("signed", torch.tensor(torch.nan))

    def calibrated(self) -> bool:
        """Whether data have shown the sign."""
        return not bool(self.signed.isnan())

    def initialize_(self, x: Tensor) -> None:
        """See the module's text."""
        self.signed.copy_(sign_of(x, self.config))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        if self.config.released:
            return quantize_evenly(*_softened(x, self.config.bits))
        rate, levels = self._rate()
        return quantize_evenly(x, 1 / rate, levels, -self.signed, rate)

    @torch.no_grad()
    def grid(self) -> Grid:
        """Of the quantized input; the released variant's step is that of each batch."""
        rate, levels = self._rate()
        if self.config.released:
            nan = torch.full_like(self.signed, torch.nan)
            return Grid(nan, torch.zeros_like(nan), self.config.bits, signed=True)
        return Grid(1 / rate, self.signed * levels.highest / 2, self.config.bits, signed=False)

    def _rate(self) -> tuple[Tensor, Levels]:
        levels = even_levels(self.config.bits)
        return levels.highest / (1 + self.signed), levels._replace(zero_point=self.signed * levels.highest / 2)


def _largest(x: Tensor) -> Tensor:
    """The largest |x|, above 0."""
    return torch.maximum(x.abs().amax(), torch.finfo(x.dtype).tiny * torch.ones_like(x.detach().amax()))


def _softened(x: Tensor, bits: int) -> tuple[Tensor, Tensor, Levels]:
    """The released variant's u, its step and levels."""
    t = torch.tanh(x)
    u = t / (t.abs().amax() + SOFTENED)
    lowest = torch.full_like(u.detach().amax(), -(2.0 ** (bits - 1)))
    step = _largest(u.detach()) / ((2.0**bits - 1) / 2)
    return u, step, Levels(lowest, lowest + (2.0**bits - 1), 0.0, "code")
