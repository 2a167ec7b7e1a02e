"""Learned quantizers: their configuration, and what their modules share.

| quantizer | weights | inputs | trained |
|---|---|---|---|
| `ewgs`, `ste` | `lowbit.quant.ewgs` | the same | both intervals, an output scale |
| `lsq` | `lowbit.quant.lsq` | the same | both steps |
| `pact` | `lowbit.quant.dorefa` | `lowbit.quant.pact` | the clipping value |
| `dorefa` | `lowbit.quant.dorefa` | the same | nothing |

Parameters are NaN until they are set from data (`lowbit.quant.initialize`) or loaded.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit.errors import InputError, one_line
from lowbit.options import QUANTIZERS

MAX_BITS = 16


@dataclass(frozen=True)
class LearnedConfig:
    """One quantizer of weights, or of a layer's inputs.

    Attributes:
        quantizer: one of QUANTIZERS.
        bits: b; 0: float.
        delta: of `ewgs`: how strongly gradients are scaled; the start where it follows the Hessian.
        released: as the programs released for LSQ, PACT and DoReFa compute (they share one framework), for comparison
            with published numbers: signed codes for all inputs, also after a ReLU; the gradient ends half a step
            beyond the last code; LSQ's step gradient counts the whole batch; PACT's clipping value stays 6; DoReFa
            divides inputs by their batch's largest value, in evaluation too. They start from the float net's inputs.
            What a module and layers in it read has one quantizer for all, at its entry (`lowbit.quant.entry`).
    """

    quantizer: str
    bits: int
    delta: float = 1e-3
    released: bool = False

    def __post_init__(self) -> None:
        if self.quantizer not in QUANTIZERS:
            raise InputError(one_line(f"quantizer {self.quantizer!r:.80}: {', '.join(QUANTIZERS)} are allowed"))
        if type(self.bits) is not int or not 0 <= self.bits <= MAX_BITS:
            raise InputError(one_line(f"{self.bits!r:.80} bits: 0 (float) to {MAX_BITS} are allowed"))
        if type(self.delta) not in (int, float) or not 0 <= self.delta < 100:
            raise InputError(one_line(f"delta {self.delta!r:.80}: 0 (straight through) to below 100 is allowed"))
        if type(self.released) is not bool:
            raise InputError(one_line(f"released {self.released!r:.80}: True and False are allowed"))
        if self.released and self.quantizer in ("ste", "ewgs"):
            raise InputError(f"released {self.quantizer}: its released program is delta 0")
        if self.released and self.bits == 1:
            raise InputError("1 bit: the released programs compute with 2 bits and more, or with 0 (float)")


@runtime_checkable
class FromData(Protocol):
    """A quantizer whose parameters start from the first data."""

    def initialize_(self, x: Tensor) -> None:
        """Set them from what is to be quantized: the weight, or the inputs of a whole batch."""
        ...


class LearnedRange:
    """What an `ActivationQuantizer` answers whose range is learned: there is nothing to calibrate."""

    config: LearnedConfig

    def has_range(self) -> bool:
        """No."""
        return False

    def calibrated(self) -> bool:
        """Whether its parameters have been set."""
        return not any(bool(p.isnan().any()) for p in self.parameters())  # type: ignore[attr-defined]

    def begin_calibration_(self) -> None:
        """Nothing to watch."""

    def end_calibration_(self, keep: bool) -> None:
        """Nothing to set."""


def unset() -> nn.Parameter:
    """A parameter that waits for data."""
    return nn.Parameter(torch.tensor(torch.nan))


def positive(x: Tensor) -> Tensor:
    """|x|, at least the smallest step that its dtype can divide by: a step that crosses 0 in training comes back."""
    return x.abs().clamp(min=torch.finfo(x.dtype).eps)


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: Tensor | float) -> Tensor:
    """`x` itself, whose gradient is multiplied by a constant."""
    y: Tensor = _ScaleGradient.apply(x, factor)
    return y


@torch.no_grad()
def sign_of(x: Tensor, config: LearnedConfig) -> Tensor:
    """1 where codes need a sign (a value is negative, or the released programs' rule), else 0; 0-dimensional.

    Raises:
        InputError: one bit, which has no codes on both sides of 0.
    """
    signed = config.released or (x.numel() > 0 and bool(x.amin() < 0))
    check_sign(config, signed)
    return torch.tensor(float(signed))


def check_sign(config: LearnedConfig, signed: bool) -> None:
    """Refuse one bit for codes on both sides of 0.

    Raises:
        InputError: `lsq` and `pact` have none.
    """
    if signed and config.bits == 1 and config.quantizer in ("lsq", "pact"):
        raise InputError(f"{config.quantizer} has no signed 1-bit codes: give 2 bits, or use ewgs or dorefa")
