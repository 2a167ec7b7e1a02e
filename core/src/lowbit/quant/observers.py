"""Observers, from batches of a tensor to the range [low, high] of its codes; and the activation that has one.

| name | of one batch | over batches |
|---|---|---|
| `minmax` | smallest and largest value | the widest |
| `ema` | the same | exponential moving average |
| `gaussian` | mean -/+ 2 standard deviations (unbiased) | the last |
| `mse` | extremes shrunk so that quantizing errs least | the first |

`mse` searches the shrinkage p in [0, 80] % by 15 rounds of ternary search for the least mean |x - q(x)|^2.4, as Cao
et al. (ECCV 2022) do, in float64 (in float32 a near tie may take the other branch); it depends on the bits. Nothing is
read back.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.quant.activations import FUNCTIONS
from lowbit.quant.layers import Grid
from lowbit.quant.parts import PART, in_parts
from lowbit.quant.uniform import asymmetric_grid, quantize_activation_range

Range = tuple[Tensor, Tensor]
SPREAD = 2.0  # standard deviations of `gaussian`
MOST_SHRINKAGE, ROUNDS, POWER = 80.0, 15, 2.4  # of `mse`


@dataclass(frozen=True)
class ObserverConfig:
    """Which observer.

    Attributes:
        name: a key of OBSERVERS.
        momentum: share of the former range that `ema` keeps per batch.
    """

    name: str = "minmax"
    momentum: float = 0.99

    def __post_init__(self) -> None:
        if self.name not in OBSERVERS:
            raise InputError(f"observer {self.name!r}: one of {', '.join(OBSERVERS)} is allowed")
        if not 0 <= self.momentum < 1:
            raise InputError(f"observer momentum {self.momentum}: 0 to below 1 is allowed")


def extremes(rows: Tensor, bits: Tensor) -> Range:
    """Smallest and largest value of each row, (C, n) -> (C,); `bits` are not used."""
    return rows.amin(1), rows.amax(1)


def gaussian(rows: Tensor, bits: Tensor) -> Range:
    """Mean -/+ two standard deviations of each row; of a single value that value."""
    deviation, mean = torch.std_mean(rows, 1, correction=min(1, rows.shape[1] - 1))
    return mean - SPREAD * deviation, mean + SPREAD * deviation


def least_error(rows: Tensor, bits: Tensor) -> Range:
    """The extremes of each row, shrunk towards 0 by the share that quantizes best at `bits`."""
    wide = rows.double()
    smallest, largest = extremes(wide, bits)
    top = (torch.bitwise_left_shift(1, bits) - 1).to(wide.dtype)
    columns = wide.split(max(1, PART // len(wide)), 1) if in_parts(wide) else (wide,)

    def error(shrinkage: Tensor) -> Tensor:
        keep = 1 - shrinkage / 100
        low, high = smallest * keep, largest * keep
        step = (high - low) / top
        step = torch.where(step > 0, step, 1.0)[:, None]
        zero = torch.floor(-low[:, None] / step + 0.5)
        total = torch.zeros_like(smallest)
        for x in columns:
            codes = (x / step).add_(0.5).floor_().clamp_(min=-zero, max=top - zero)
            total += codes.mul_(step).sub_(x).abs_().pow_(POWER).sum(1)
        return total / wide.shape[1]

    left, right = torch.zeros_like(smallest), torch.full_like(smallest, MOST_SHRINKAGE)
    best, least = left, torch.full_like(smallest, torch.inf)
    for _ in range(ROUNDS):
        third = (right - left) / 3
        lower, upper = left + third, right - third
        at_lower, at_upper = error(lower), error(upper)
        for tried, found in ((lower, at_lower), (upper, at_upper)):
            best, least = torch.where(found < least, tried, best), torch.minimum(found, least)
        falls = at_lower > at_upper
        left, right = torch.where(falls, lower, left), torch.where(falls, right, upper)
    keep = 1 - best / 100
    return (smallest * keep).to(rows.dtype), (largest * keep).to(rows.dtype)


OBSERVERS: dict[str, Callable[[Tensor, Tensor], Range]] = {
    "minmax": extremes,
    "ema": extremes,
    "gaussian": gaussian,
    "mse": least_error,
}


class Observer(nn.Module):
    """Watches a tensor and keeps its range, of the whole tensor or of each channel.

    Args:
        config: which observer.
        channels: number of channels with a range of their own; None: one range.
        axis: of the channels.

    Attributes:
        low, high: buffers, () or (channels,); 0 before the first batch.
        seen: buffer, number of batches since `reset_`.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    def __init__(self, config: ObserverConfig, channels: int | None = None, axis: int = 1) -> None:
        super().__init__()
        self.config, self.axis = config, axis
        shape = () if channels is None else (channels,)
        self.register_buffer("low", torch.zeros(shape))
        self.register_buffer("high", torch.zeros(shape))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, x: Tensor, bits: Tensor) -> None:
        """Take in one batch, which may be empty; `bits` (0-dimensional) matter to `mse` alone."""
        if not x.numel():
            return
        low, high = self._of_batch(x.detach().to(self.low.dtype), bits)
        joined_low, joined_high = self._joined(low, high)
        self.low.copy_(torch.where(self.seen == 0, low, joined_low))
        self.high.copy_(torch.where(self.seen == 0, high, joined_high))
        self.seen.add_(1)

    def reset_(self) -> None:
        """Forget all batches; the range stays until the next."""
        self.seen.zero_()

    def extra_repr(self) -> str:
        """The observer's name, for print(model)."""
        return self.config.name

    def _of_batch(self, x: Tensor, bits: Tensor) -> Range:
        if self.low.dim():
            return OBSERVERS[self.config.name](x.movedim(self.axis, 0).flatten(1), bits)
        if OBSERVERS[self.config.name] is extremes:
            low, high = torch.aminmax(x)  # one pass over the activations instead of two
            return low, high
        low, high = OBSERVERS[self.config.name](x.reshape(1, -1), bits)
        return low[0], high[0]

    def _joined(self, low: Tensor, high: Tensor) -> Range:
        """The range after a batch of range [low, high] that is not the first."""
        if self.config.name == "minmax":
            return torch.minimum(self.low, low), torch.maximum(self.high, high)
        if self.config.name == "ema":
            keep = self.config.momentum
            return self.low * keep + low * (1 - keep), self.high * keep + high * (1 - keep)
        return (self.low, self.high) if self.config.name == "mse" else (low, high)


class ObservedActivation(nn.Module):
    """An activation function and its asymmetric quantizer, in the place of the net's own activation module.

    Args:
        function: key of `lowbit.quant.activations.FUNCTIONS`.
        observer: sets the range in mode `observe`.
        pin: bits that replace whatever is drawn; None: what is drawn.

    Attributes:
        a_bits: buffer, 0-dimensional; 0: float.
        mode: one of MODES. Without an observed range `quantized` does nothing (`lowbit.quant.calibrate.uncalibrated`).
    """

    a_bits: Tensor

    def __init__(self, function: str, observer: ObserverConfig, pin: int | None = None) -> None:
        super().__init__()
        self.function, self.pin, self.mode = function, pin, "float"
        self.observer = Observer(observer)
        self.register_buffer("a_bits", torch.tensor(pin or 0), persistent=False)
        self._former: tuple[str, dict[str, Tensor]] | None = None  # mode and range, while calibrating

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

    def grid(self) -> Grid | None:
        """The grid of the output in mode `quantized`; None: float."""
        bits = int(self.a_bits) if self.mode == "quantized" else 0
        found = asymmetric_grid(self.observer.low, self.observer.high, self.a_bits)
        return Grid(found.scale, found.zero_point, bits, signed=False) if bits and bool(found.on) else None

    def has_range(self) -> bool:
        """Always."""
        return True

    def calibrated(self) -> bool:
        """Whether a batch was observed."""
        return bool(self.observer.seen)

    def begin_calibration_(self) -> None:
        """Observe in float, from no batch on."""
        self._former = self.mode, {name: value.clone() for name, value in self.observer.named_buffers()}
        self.mode = "observe"
        self.observer.reset_()

    @torch.no_grad()
    def end_calibration_(self, keep: bool) -> None:
        """The former mode; the former range, too, unless `keep`."""
        if self._former is None:
            return
        self.mode, buffers = self._former
        self._former = None
        for name, value in () if keep else buffers.items():
            self.observer.get_buffer(name).copy_(value)
