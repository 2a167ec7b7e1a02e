"""Learned intervals for weights and inputs, and element-wise gradient scaling; with delta 0 the straight-through rule.

Lee, Kim, Ham, "Network Quantization with Element-wise Gradient Scaling", CVPR 2021 (arXiv 2104.00903), Sec. 3.

    inputs:  t = clip((x - l) / (u - l), 0, 1),  x_hat = round((L - 1) t) / (L - 1)       L = 2^b levels from 0 to 1
    weights: t likewise,                         w_hat = 2 round((L - 1) t) / (L - 1) - 1  L levels from -1 to 1
    output:  |s| (conv(x_hat, w_hat) + bias), with |s| taken into the weight and the bias

Gradients: `lowbit.quant.rounding`. At both ends of the interval, bounds included, x, l and u get theirs; beyond, none
of them does. s gets that of the output. delta is constant, or set from the Hessian (`lowbit.quant.grad_scale`).

Start: u, l = +-3 std(w); u = 3 std(x) / sqrt(1 - 2 / pi), l = min(x);
s = mean |conv(x, w)| / mean |conv(x_hat, w_hat)|.
"""

import math

import torch
from torch import Tensor, nn

from lowbit.quant.layers import Codes, Grid
from lowbit.quant.learned import LearnedConfig, LearnedRange, unset
from lowbit.quant.rounding import Levels, constant, even_codes, even_levels, quantize_evenly

SPREAD = 3.0  # standard deviations
HALF_NORMAL = math.sqrt(1 - 2 / math.pi)  # standard deviation of |x| over that of x, both of a normal x


class Interval(nn.Module):
    """[low, high] and delta; `ewgs` has a buffer `delta`, which the Hessian may set, `ste` has none."""

    delta: Tensor | None

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.low, self.high = unset(), unset()
        scaled = config.quantizer == "ewgs" and config.delta > 0
        self.register_buffer("delta", torch.tensor(float(config.delta)) if scaled else None)

    def set_(self, low: Tensor, high: Tensor) -> None:
        """Set the ends; an empty interval becomes one of width 1."""
        self.low.copy_(low)
        self.high.copy_(torch.where(high > low, high, low + 1))

    def rate(self, levels: Levels) -> Tensor:
        """Steps per x."""
        return levels.highest / (self.high - self.low)

    def forward(self, x: Tensor, step: Tensor, levels: Levels) -> Tensor:
        """The quantized `x`, any shape."""
        return quantize_evenly(x, step, levels, self.low, self.rate(levels), self.delta)


class EwgsInput(LearnedRange, nn.Module):
    """Inputs to x_hat in [0, 1], any shape: what the convolution multiplies (no shift back to x)."""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.interval = Interval(config)

    @torch.no_grad()
    def initialize_(self, x: Tensor) -> None:
        """See the module's text."""
        self.interval.set_(x.amin(), SPREAD / HALF_NORMAL * x.std())

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        y: Tensor = self.interval(x, self._step(), even_levels(self.config.bits))
        return y

    @torch.no_grad()
    def grid(self) -> Grid:
        """Of x_hat."""
        step = self._step()
        return Grid(step, torch.zeros_like(step), self.config.bits, signed=False)

    def _step(self) -> Tensor:
        return constant(1 / (2**self.config.bits - 1), self.interval.low)


class EwgsWeight(nn.Module):
    """Weights to |s| w_hat; with 0 bits to |s| w."""

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        self.interval = Interval(config) if config.bits else None
        self.output_scale = nn.Parameter(torch.ones(()))

    @torch.no_grad()
    def initialize_(self, weight: Tensor) -> None:
        """The interval, from the weight."""
        if self.interval is not None:
            end = SPREAD * weight.std()
            self.interval.set_(-end, end)
        self.output_scale.fill_(1)

    @torch.no_grad()
    def match_(self, wanted: Tensor, found: Tensor) -> None:
        """Set the output scale.

        Args:
            wanted: the float layer's output without bias.
            found: the same with weight and input quantized, at an output scale of 1.
        """
        scale = wanted.abs().mean() / found.abs().mean()
        self.output_scale.copy_(torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0))

    def forward(self, weight: Tensor) -> Tensor:
        """(out, ...)."""
        if self.interval is None:
            return weight * self.output_scale.abs()
        levels = even_levels(self.config.bits, centred=True)
        y: Tensor = self.interval(weight, self._step(levels), levels)
        return y

    def bias(self, bias: Tensor) -> Tensor:
        """The bias to compute with."""
        return bias * self.output_scale.abs()

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes | None:
        """The same as codes 0 to L - 1 about (L - 1) / 2; None with 0 bits."""
        if self.interval is None:
            return None
        levels = even_levels(self.config.bits, centred=True)
        step, rate = self._step(levels), self.interval.rate(levels)
        codes = even_codes(weight, step, levels, self.interval.low, rate)
        return Codes(codes, Grid(step, constant(float(levels.zero_point), weight), self.config.bits, signed=False))

    def _step(self, levels: Levels) -> Tensor:
        return 2 * self.output_scale.abs() / levels.highest
