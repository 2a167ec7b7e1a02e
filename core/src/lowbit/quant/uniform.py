"""Uniform quantizers whose bits are tensors: symmetric for weights, asymmetric for activations.

Cao, Sun, Huang, Wu, Zhou, "Synergistic Self-supervised and Quantization Learning", ECCV 2022 (arXiv 2207.05432),
Sec. 3.1. y = s clip(round(x / s), lowest, highest), half to even; an asymmetric code is that integer plus the zero
point. Bits are 0-dimensional integer tensors, so that drawing them neither recompiles a net nor reads a value back;
0 bits: not quantized.

Gradient: the rounding passes it straight through; the clip passes it where the rounded value lies inside its bounds,
bounds included (with torch's own `clamp`, whose rule changed with torch 2.14, half of the codes at 2 bits would get
none). Ranges get no gradient; a weight's scale may (`largest_magnitude`).

Deviations from the authors' program: the weight scale is a constant unless asked for; a range of width 0 leaves only
its own channel unquantized (there one zero filter leaves the whole tensor so).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.quant.parts import in_parts, parts, scratch

GRIDS = ("half", "whole")
MAX_BITS = 16


@dataclass(frozen=True)
class WeightConfig:
    """How weights are quantized, at whatever bits.

    Attributes:
        grid: where the largest |w| lies. "half": at 2^(b-1) - 1/2, the authors' grid, which uses all codes but clips
            the largest positive weight by half a step. "whole": at 2^(b-1) - 1, the usual one; the lowest code is
            unused.
        per_channel: one scale per output channel, else one per tensor.
        differentiable_scale: the scale's gradient reaches the channel's extreme weight, as in the authors' program.
    """

    grid: str = "half"
    per_channel: bool = True
    differentiable_scale: bool = False

    def __post_init__(self) -> None:
        if self.grid not in GRIDS:
            raise InputError(f"weight grid {self.grid!r}: one of {', '.join(GRIDS)} is allowed")


def check_bits(bits: int, what: str) -> int:
    """The number of bits if it is one.

    Raises:
        InputError: neither 0 nor 2 to 16.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not (bits == 0 or 2 <= bits <= MAX_BITS):
        raise InputError(f"{what}: {bits!r} bits: 0 (float) or 2 to {MAX_BITS} are allowed")
    return bits


class UniformGrid(NamedTuple):
    """The values that b bits can take, all tensors 0-dimensional or broadcastable to what is quantized.

    Attributes:
        scale: distance of two values; 0 for a range of width 0.
        zero_point: the code of the value 0, a float holding an integer.
        lowest, highest: the ends of the codes, less the zero point.
        on: whether anything is quantized: bits > 0, and for activations a range that has a width.
    """

    scale: Tensor
    zero_point: Tensor
    lowest: Tensor
    highest: Tensor
    on: Tensor


class _FakeQuantize(torch.autograd.Function):
    """x -> s clip(round(x / s)) + off x; dx = g inside the clip, ds = sum g (y - x) / s inside, sum g y / s outside.

    Few passes over memory, most of them in place: on a CPU they are what quantized training costs.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor, on: Tensor) -> Tensor:
        safe = torch.where(on & (scale > 0), scale, 1.0)
        rounded = (x / safe).round_()
        codes = torch.maximum(rounded, lowest).minimum(highest)
        if any(ctx.needs_input_grad):
            # as floats on the CPU, where multiplying by booleans takes three times as long; a quarter of it elsewhere
            inside = rounded.eq_(codes) if x.device.type == "cpu" else rounded == codes
        y = codes.mul_(torch.where(on, scale, 0.0)).addcmul_(x, (~on).to(x.dtype))
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(inside, safe, x, y)
        elif ctx.needs_input_grad[0]:
            ctx.save_for_backward(inside, safe)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        inside, scale, *rest = ctx.saved_tensors
        # up and down by the scale, as differentiating the formula does: the last bit decides later on about a code
        dx = (grads[0] * scale).mul_(inside).div_(scale)
        if not rest:
            return dx, None, None, None, None
        x, y = rest
        dscale = ((grads[0] * y - dx * x) / scale).sum_to_size(scale.shape)
        return dx, dscale, None, None, None


class _QuantizeRange(torch.autograd.Function):
    """As `_FakeQuantize` with one constant scale, of x or of relu(x): dx = g inside the clip, and above 0.

    On a CPU, where writing to memory is what it costs, the operations run over parts that stay in its caches, and
    backward compares x itself with the ends of the clip instead of reading a mask.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, lowest: Tensor, highest: Tensor, on: Tensor, relu: bool) -> Tensor:
        safe, factor, off = torch.where(on & (scale > 0), scale, 1.0), torch.where(on, scale, 0.0), (~on).to(x.dtype)
        if in_parts(x):
            y, buffers = torch.empty_like(x), (scratch(x), scratch(x))
            for part, out in zip(parts(x), parts(y), strict=True):
                source, codes = (buffer[: len(part)] for buffer in buffers)
                source = torch.clamp(part, min=0, out=source) if relu else part
                torch.div(source, safe, out=codes).round_()
                torch.maximum(codes, lowest, out=codes)
                torch.minimum(codes, highest, out=codes)
                torch.mul(codes, factor, out=out).addcmul_(source, off)
            if ctx.needs_input_grad[0]:
                ctx.save_for_backward(x, safe, *_ends(safe, lowest, highest, relu))
            return y
        source = x.clamp(min=0) if relu else x
        rounded = (source / safe).round_()
        codes = torch.maximum(rounded, lowest).minimum(highest)
        if ctx.needs_input_grad[0]:
            inside = rounded == codes
            ctx.save_for_backward(inside.logical_and_(source > 0) if relu else inside, safe)
        return codes.mul_(factor).addcmul_(source, off)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (saved, scale, *ends), g = ctx.saved_tensors, grads[0]
        # up and down by the scale, as in `_FakeQuantize`
        if not ends:
            return (g * scale).mul_(saved).div_(scale), None, None, None, None, None
        g = g if g.stride() == saved.stride() else torch.empty_like(saved).copy_(g)
        dx, buffer = torch.empty_like(saved), scratch(saved)
        for part, x, out in zip(parts(g), parts(saved), parts(dx), strict=True):
            inside = torch.maximum(x, ends[0], out=buffer[: len(x)])
            torch.minimum(inside, ends[1], out=inside).eq_(x)
            torch.mul(part, scale, out=out).mul_(inside).div_(scale)
        return dx, None, None, None, None, None


def _ends(scale: Tensor, lowest: Tensor, highest: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """The smallest and the largest x whose rounded x / scale lies in [lowest, highest], and with `relu` above 0."""
    whole = torch.int64 if scale.dtype == torch.float64 else torch.int32
    near = torch.arange(-4, 5, dtype=whole, device=scale.device)  # neighbours: products and quotients err by less
    low, high = (
        (((end + half) * scale).view(whole) + near).view(scale.dtype) for end, half in ((lowest, -0.5), (highest, 0.5))
    )
    low = torch.where((low / scale).round() >= lowest, low, torch.inf).amin()
    high = torch.where((high / scale).round() <= highest, high, -torch.inf).amax()
    above_zero = torch.nextafter(torch.zeros_like(low), torch.ones_like(low))
    return torch.maximum(low, above_zero) if relu else low, high


def symmetric_grid(largest: Tensor, bits: Tensor, grid: str = "half") -> UniformGrid:
    """The grid of b signed bits around 0.

    Args:
        largest: largest magnitude of what is quantized, of all of it or of each channel (broadcastable).
        bits: b, 0-dimensional integer tensor.
        grid: as in `WeightConfig`.
    """
    half = torch.bitwise_left_shift(1, bits).to(largest.dtype) / 2  # 2^(b-1)
    scale = largest / (half - (0.5 if grid == "half" else 1.0))
    on = bits > 0  # a channel of zeros has scale 0: its codes, its values and its clip's mask are right as they come
    return UniformGrid(scale, torch.zeros_like(half), *_bounds(-half, half - 1, on), on)


def asymmetric_grid(low: Tensor, high: Tensor, bits: Tensor) -> UniformGrid:
    """The grid of codes 0 to 2^b - 1 over [low, high], moved so that the value 0 has an integer code.

    Args:
        low: the range's lower end; may be positive.
        high: its upper end, like `low` in shape.
        bits: b, 0-dimensional integer tensor.
    """
    top = (torch.bitwise_left_shift(1, bits) - 1).to(low.dtype)
    scale = (high - low) / top
    on = (bits > 0) & (scale > 0)
    zero_point = -torch.round(low / torch.where(on, scale, 1.0))
    return UniformGrid(scale, zero_point, *_bounds(-zero_point, top - zero_point, on), on)


def _bounds(lowest: Tensor, highest: Tensor, on: Tensor) -> tuple[Tensor, Tensor]:
    """The clip's bounds; none where nothing is quantized, so that the gradient passes there."""
    return torch.where(on, lowest, -torch.inf), torch.where(on, highest, torch.inf)


def fake_quantize(x: Tensor, grid: UniformGrid) -> Tensor:
    """`x` moved to the grid, with the gradients stated above; `x` itself where the grid is off.

    Half precision is computed in single (it cannot hold the codes) and returned as it came.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    y: Tensor = _FakeQuantize.apply(wide, grid.scale, grid.lowest, grid.highest, grid.on)
    return y.to(x.dtype)


@torch.no_grad()
def integer_codes(x: Tensor, grid: UniformGrid) -> Tensor:
    """The codes of `x`, int32: `fake_quantize(x)` is (codes - zero_point) * scale where the grid is on; 0 elsewhere."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    rounded = torch.round(wide / torch.where(grid.on & (grid.scale > 0), grid.scale, 1.0))
    codes = torch.minimum(torch.maximum(rounded, grid.lowest), grid.highest) + grid.zero_point
    return torch.where(grid.on, codes, 0.0).to(torch.int32)


def largest_magnitude(weight: Tensor, per_channel: bool = True, differentiable: bool = False) -> Tensor:
    """The max |w| of each output channel (axis 0) or of all, shaped to broadcast against `weight`.

    With `differentiable` the gradient is that of max(|min|, |max|), the minimum's and maximum's going to their first
    position and halved between both where |min| = |max|: the authors' rule, under which the term of the scale lands on
    the extreme weight alone.
    """
    if differentiable:
        rows = weight.flatten(1) if per_channel else weight.reshape(1, -1)
        low = rows.gather(1, rows.argmin(1, keepdim=True))
        high = rows.gather(1, rows.argmax(1, keepdim=True))
        shape = [-1 if per_channel else 1] + [1] * (weight.dim() - 1)
        return torch.maximum(low.abs(), high.abs()).view(shape)
    dims = tuple(range(1 if per_channel else 0, weight.dim()))
    low, high = weight.detach().amin(dims, keepdim=True), weight.detach().amax(dims, keepdim=True)
    return torch.maximum(low.abs(), high.abs())


def quantize_weight(weight: Tensor, bits: Tensor, config: WeightConfig | None = None) -> Tensor:
    """A weight (out, ...) at `bits`, by `config`; 0 bits return it as it is.

    A channel of zeros stays zero, gets its gradient unchanged, and leaves the other channels alone.
    """
    return fake_quantize(weight, weight_grid(weight, bits, config or WeightConfig()))


def weight_grid(weight: Tensor, bits: Tensor, config: WeightConfig) -> UniformGrid:
    """The grid of a weight (out, ...) by `config`."""
    largest = largest_magnitude(weight, config.per_channel, config.differentiable_scale)
    return symmetric_grid(largest, bits, config.grid)


def quantize_activation_range(x: Tensor, low: Tensor, high: Tensor, bits: Tensor, relu: bool = False) -> Tensor:
    """`x` (any shape) at `bits` over the constant range [low, high]; values beyond it are clipped, without gradient.

    With `relu` it is ReLU's output that is quantized: one function instead of two, which on a CPU saves a third.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    grid = asymmetric_grid(low.detach(), high.detach(), bits)
    y: Tensor = _QuantizeRange.apply(wide, grid.scale, grid.lowest, grid.highest, grid.on, relu)
    return y.to(x.dtype)
