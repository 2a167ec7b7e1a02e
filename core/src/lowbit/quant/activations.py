"""Uniform activation quantizers whose step comes from the largest value seen: ReLU, ReLU6, PACT and others in b bits.

y = S round(f(x) (2^b - 1) / S) / (2^b - 1), half to even, S the largest |f(x)|, straight through the rounding. With
`range="batch"` S is that of the current batch, in evaluation too, as Yang et al. (ICLR 2021) have it (so a result
depends on what else is in the batch); with `range="running"` a buffer that `calibrate_` sets and training moves.

PACT: Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085, Eq. 1-3;
at x = alpha both x and alpha get the gradient.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.quant.layers import Grid
from lowbit.quant.parts import in_parts, parts

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,  # gradient 0 at 0 and at 6
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "hardswish": F.hardswish,
    "mish": F.mish,
    "hard_mish": lambda x: 0.5 * x * (x + 2).clamp(0, 2),
    "leaky_relu": F.leaky_relu,
    "elu": F.elu,
    "celu": F.celu,
    "selu": F.selu,
}
RANGES = ("batch", "running")
NOT_NEGATIVE = ("relu", "relu6", "pact")
MAX_BITS = 16
PACT_START = 10.0
MOMENTUM = 0.1  # of the running range in training, as batch norm's


@dataclass(frozen=True)
class ActivationConfig:
    """What one activation quantizer does.

    Attributes:
        bits: b, 2^b levels from 0 to S; functions with negative values use the same steps below 0. 0: no rounding.
        function: "pact" or a key of FUNCTIONS.
        range: "batch" or "running".
    """

    bits: int
    function: str = "relu"
    range: str = "batch"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 0 <= self.bits <= MAX_BITS:
            raise InputError(f"{self.bits!r:.80} activation bits: 0 (not quantized) to {MAX_BITS} are allowed")
        if not isinstance(self.function, str) or self.function not in (*FUNCTIONS, "pact"):
            raise InputError(
                f"activation function {self.function!r:.80}: one of {', '.join((*FUNCTIONS, 'pact'))} is allowed"
            )
        if not isinstance(self.range, str) or self.range not in RANGES:
            raise InputError(f"activation range {self.range!r:.80}: one of {', '.join(RANGES)} is allowed")


class _Pact(torch.autograd.Function):
    """min(relu(x), alpha); d_x = g where 0 <= x <= alpha, d_alpha = sum of g where x >= alpha."""

    @staticmethod
    def forward(x: Tensor, alpha: Tensor) -> Tensor:
        return torch.minimum(x.clamp(min=0), alpha.to(x.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, alpha = ctx.saved_tensors
        above = (grads[0] * (x >= alpha)).sum().to(alpha.dtype)
        return grads[0] * ((x >= 0) & (x <= alpha)), above


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x  # half precision cannot hold x L / S


def _rounded_(x: Tensor, largest: Tensor, levels: int) -> Tensor:
    """S round(x L / S) / L in place; a CPU takes parts that stay in its caches over the four operations."""
    divisor, step = torch.where(largest > 0, largest, 1), largest / levels
    for part in parts(x) if in_parts(x) else (x,):
        part.mul_(levels).div_(divisor).round_().mul_(step)
    return x


def pact(x: Tensor, alpha: Tensor) -> Tensor:
    """Clip to [0, alpha] with PACT's gradients; `alpha` is 0-dimensional."""
    return _Pact.apply(x, alpha)


def quantize_activation_(y: Tensor, largest: Tensor, bits: int) -> Tensor:
    """Round `y` to multiples of largest / (2^bits - 1) in place, hidden from autograd: the gradient passes unchanged.

    Args:
        y: an activation function's output, which its backward does not need (autograd says so if it does).
        largest: 0-dimensional; the caller has clipped to +-largest.
        bits: 1 or more.
    """
    with torch.no_grad():
        hidden = y.detach()
        wide = _rounded_(_wide(hidden), largest, 2**bits - 1)
        if wide is not hidden:
            hidden.copy_(wide)
    return y


class QuantActivation(nn.Module):
    """An activation function and its quantizer, in the place of the net's own activation module.

    Parameter `alpha` exists for PACT alone, buffer `largest` for the running range alone, so that the keys of the
    authors' checkpoints fit. While training with the running range, `largest` follows the batches as batch norm's
    statistics do, and x beyond it gets no gradient.
    """

    alpha: nn.Parameter | None
    largest: Tensor | None

    def __init__(self, config: ActivationConfig) -> None:
        super().__init__()
        self.config = config
        pact_alpha = nn.Parameter(torch.tensor(PACT_START)) if config.function == "pact" else None
        self.register_parameter("alpha", pact_alpha)
        running = torch.zeros(()) if config.range == "running" and config.bits else None  # 0: not calibrated yet
        self.register_buffer("largest", running)
        self.seen: list[Tensor] | None = None  # the batches' maxima while calibrating

    def extra_repr(self) -> str:
        """The configuration, for print(model)."""
        return ", ".join(f"{name}={value}" for name, value in asdict(self.config).items())

    def forward(self, x: Tensor) -> Tensor:
        """Any shape; the range is that of the whole tensor."""
        config, by_batch = self.config, self.largest is None or self.seen is not None
        if self.alpha is not None:
            y = pact(x, self.alpha)
        elif config.function == "relu" and config.bits and by_batch:
            y = F.hardtanh(x, 0.0, float("inf"))  # the backward of F.relu needs its output, which is to be rounded
        else:
            y = FUNCTIONS[config.function](x)
        if not config.bits:
            return y
        if by_batch:
            return quantize_activation_(y, self._shared(_largest(y)), config.bits)
        if self.training:
            self._follow(self._shared(_largest(y)))
        assert self.largest is not None
        limit = self.largest.to(y.dtype, copy=True)  # backward needs it, and another use of this module may move it
        return quantize_activation_(torch.clamp(y, -limit, limit), self.largest, config.bits)

    def grid(self) -> Grid | None:
        """The grid of the output; functions with negative values need a sign beside their b bits."""
        bits, signed = self.config.bits, self.config.function not in NOT_NEGATIVE
        if not bits:
            return None
        largest = torch.tensor(torch.nan) if self.largest is None else self.largest
        return Grid(largest / (2**bits - 1), torch.zeros_like(largest), bits + signed, signed)

    def has_range(self) -> bool:
        """Whether the range is a running one."""
        return self.largest is not None

    def calibrated(self) -> bool:
        """Whether the running range is above 0 (at 0 the output would be 0)."""
        return self.largest is None or bool(self.largest > 0)

    def begin_calibration_(self) -> None:
        """Quantize over each batch's own range, and keep the ranges."""
        self.seen = None if self.largest is None else []

    @torch.no_grad()
    def end_calibration_(self, keep: bool) -> None:
        """Set the running range to the mean of those that were seen."""
        if keep and self.seen and self.largest is not None:
            seen = torch.stack(self.seen)
            seen = seen[~(seen < 0)]
            if seen.numel():
                self.largest.copy_(seen.mean())
        self.seen = None

    @torch.no_grad()
    def _shared(self, largest: Tensor) -> Tensor:
        """The largest of all ranks while they share a batch (training, calibration), not in evaluation."""
        largest = largest.to(torch.promote_types(largest.dtype, torch.float32))
        shared = self.training or self.seen is not None
        if shared and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        if self.seen is not None:
            self.seen.append(largest)
        return largest

    @torch.no_grad()
    def _follow(self, largest: Tensor) -> None:
        assert self.largest is not None
        moved = torch.lerp(self.largest, largest.to(self.largest.dtype), MOMENTUM)
        moved = torch.where(self.largest > 0, moved, largest)
        self.largest.copy_(torch.where(largest < 0, self.largest, moved))


def _largest(y: Tensor) -> Tensor:
    """Largest |y|; -1 of an empty batch, which every other batch of its step exceeds."""
    if not y.numel():
        return y.new_full((), -1)
    low, high = torch.aminmax(y.detach())
    return torch.maximum(-low, high)
