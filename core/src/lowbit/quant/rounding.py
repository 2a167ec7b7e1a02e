"""The one function of the learned quantizers: clip, round to even levels, and the gradients of x, interval and step.

    v = (x - low) rate,   n = round(clip(v, lowest, highest)), half to even,   y = (n - zero_point) step

Backward is g_x = g_q + mu (x - Q(x)), in the interval's units: with t = v / (highest - lowest), t_q = n / (...),

    dx = step rate (g + mu (t - t_q)),  mu = delta |g|,  inside the clip; 0 outside
    dlow = - sum dx,   drate = sum dx v / rate^2,   dstep = sum g (n - zero_point)

mu = 0 is the straight-through rule; mu = delta |g| element-wise gradient scaling (Lee, Kim, Ham, CVPR 2021, arXiv
2104.00903, Eq. 7). Where one step both divides and multiplies (rate = 1 / step), dstep = sum g (n - v) inside and
sum g n outside, the rule of Esser et al., "Learned Step Size Quantization", ICLR 2020 (arXiv 1902.08153), Eq. 3; with
`clip_step` the rounding counts as the identity, which leaves sum g clip(v) outside (PACT).

What counts as inside is an explicit mask (`edge`): the rule of torch's `clamp` changed between its releases, and after
a ReLU half of all values lie on a bound. On a CPU the operations run over parts that stay in its caches, and backward
computes v again instead of keeping it.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit.quant.parts import in_parts, parts


class Levels(NamedTuple):
    """The codes of a quantizer and its rules at the ends.

    Numbers are 0-dimensional tensors where they depend on data; as floats, with closed ends, they save operations.

    Attributes:
        lowest, highest: the ends of the clip, in steps.
        zero_point: the code of the value 0.
        edge: where x gets a gradient. "closed": lowest <= v <= highest; "open": without the bounds; "code": where
            round(v) is a code, half a step further.
        clip_step: the step's gradient is that of the clip alone.
    """

    lowest: Tensor | float
    highest: Tensor | float
    zero_point: Tensor | float
    edge: str = "closed"
    clip_step: bool = False


def even_levels(bits: int, centred: bool = False) -> Levels:
    """2^b codes from 0, for v that lies in [0, 2^b - 1]; centred: the value 0 is in their middle, not at the first."""
    top = 2.0**bits - 1
    return Levels(0.0, top, top / 2 if centred else 0.0)


def constant(value: float, like: Tensor) -> Tensor:
    """A 0-dimensional tensor beside what is quantized."""
    return like.new_full((), value, dtype=_wide(like.dtype))


def quantize_evenly(
    x: Tensor,
    step: Tensor,
    levels: Levels,
    low: Tensor | None = None,
    rate: Tensor | None = None,
    delta: Tensor | None = None,
) -> Tensor:
    """`x` (any shape) on the grid, with the gradients stated above; half precision is computed in single.

    Args:
        x: what is quantized.
        step: 0-dimensional: distance of two values.
        levels: the codes.
        low: 0-dimensional: x of v = 0; None: 0.
        rate: 0-dimensional: v per x; None: 1 / step, and the step gets both gradients.
        delta: 0-dimensional, no gradient; None: straight through. With a rate alone.
    """
    y: Tensor = _Quantize.apply(x.to(_wide(x.dtype)), step, low, rate, delta, levels)
    return y.to(x.dtype)


@torch.no_grad()
def even_codes(
    x: Tensor, step: Tensor, levels: Levels, low: Tensor | None = None, rate: Tensor | None = None
) -> Tensor:
    """The codes of `x`, int32: `quantize_evenly` is (codes - zero_point) * step."""
    v = x.to(_wide(x.dtype)).clone()
    _position_(v, low, 1 / step if rate is None else rate)
    return _clip_(v, levels.lowest, levels.highest).round_().to(torch.int32)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _position_(x: Tensor, low: Tensor | None, rate: Tensor, out: Tensor | None = None) -> Tensor:
    """V of x, into `out` (x itself if None)."""
    out = x if out is None else out
    return torch.mul(x, rate, out=out) if low is None else torch.sub(x, low, out=out).mul_(rate)


def _clip_(v: Tensor, lowest: Tensor | float, highest: Tensor | float, out: Tensor | None = None) -> Tensor:
    """The clip; between tensors in two operations (`clamp` is five times as slow)."""
    if isinstance(lowest, float) and isinstance(highest, float):
        return torch.clamp(v, lowest, highest, out=v if out is None else out)
    assert isinstance(lowest, Tensor) and isinstance(highest, Tensor)
    out = torch.maximum(v, lowest, out=v if out is None else out)
    return torch.minimum(out, highest, out=out)


def _numbers(levels: Levels, like: Tensor) -> Levels:
    """Ends and zero point as numbers where reading them costs nothing: of true tensors on a CPU."""
    if like.device.type != "cpu" or torch.compiler.is_compiling():
        return levels
    lowest, highest, zero_point = (float(end) if type(end) is Tensor else end for end in levels[:3])
    return levels._replace(lowest=lowest, highest=highest, zero_point=zero_point)


def _open_ends(levels: Levels, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
    """The v between which, themselves left out, x gets a gradient."""
    lowest, highest = levels.lowest, levels.highest
    if levels.edge == "open":
        return lowest, highest
    if levels.edge == "closed":
        return _beyond(lowest, like, -1), _beyond(highest, like, 1)
    # half a step further; ties go to the even code: the lowest is even, the highest odd
    return _beyond(lowest - 0.5, like, -1), highest + 0.5


def _beyond(end: Tensor | float, like: Tensor, sign: int) -> Tensor | float:
    """The next number of `like`'s type on the side of `sign`, where `end` lies, too; after 0 the first normal one."""
    if isinstance(end, Tensor):
        return torch.nextafter(end, torch.full_like(end, sign * torch.inf))
    kind = torch.finfo(like.dtype)
    return end + sign * math.ldexp(kind.eps, math.frexp(end)[1] - 1) if end else sign * kind.tiny


def _inside(g: Tensor, v: Tensor, ends: tuple[Tensor | float, Tensor | float], out: Tensor) -> Tensor:
    """`g` where v lies between the ends, themselves left out, else 0; between numbers in one operation."""
    first, last = ends
    if isinstance(first, float) and isinstance(last, float):
        return torch.ops.aten.hardtanh_backward.grad_input(g, v, first, last, grad_input=out)
    return torch.mul(g, (v > first).logical_and_(v < last), out=out)


class _Quantize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        step: Tensor,
        low: Tensor | None,
        rate: Tensor | None,
        delta: Tensor | None,
        levels: Levels,
    ) -> Tensor:
        ctx.levels = levels = _numbers(levels, x)
        ctx.save_for_backward(x, step, low, rate, delta)
        scale = 1 / step if rate is None else rate
        centred = isinstance(levels.zero_point, Tensor) or levels.zero_point != 0
        y = torch.empty_like(x)
        for part, out in zip(*_split(x, y), strict=True):
            _clip_(_position_(part, low, scale, out), levels.lowest, levels.highest).round_()
            (out.sub_(levels.zero_point) if centred else out).mul_(step)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, step, low, rate, delta = ctx.saved_tensors
        g, levels, tied = grads[0], ctx.levels, rate is None
        if torch.is_grad_enabled():  # second derivatives, for the trace of the Hessian: those of a linear map of g
            return _twice(x.detach(), g, step, low, rate, delta, levels)
        g = g if g.stride() == x.stride() else torch.empty_like(x).copy_(g)
        scale, slope = (1 / step, None) if tied else (rate, step * rate)
        ends, spread = _open_ends(levels, x), None if delta is None else delta / (levels.highest - levels.lowest)
        dx, (of_step, of_low, of_rate) = torch.empty_like(x), ctx.needs_input_grad[1:4]
        buffers: list[Tensor] = []
        sums: tuple[list[Tensor], ...] = ([], [], [])  # of each part, the latter two before `slope`
        dsteps, dlows, drates = sums
        for part, up, out in zip(*_split(x, g, dx), strict=True):
            if not buffers or buffers[0].shape != part.shape:
                buffers = [part.new_empty(part.shape) for _ in range(2 if delta is None else 3)]
            v, n = buffers[:2]
            _position_(part, low, scale, v)
            if of_step or spread is not None:
                _clip_(v, levels.lowest, levels.highest, n)
                n = n if levels.clip_step else n.round_()
            if of_step:  # tied: sum g n less sum g v inside
                dsteps.append(_dot(up, n if tied else n - levels.zero_point))
            if spread is not None:
                error = torch.sub(v, n, out=n).mul_(spread)
                up = torch.addcmul(up, torch.abs(up, out=buffers[2]), error, out=buffers[2])
            _inside(up, v, ends, out)
            if tied and of_step:
                dsteps.append(-_dot(out, v))
            if of_low:
                dlows.append(out.sum())
            if of_rate:
                drates.append(_dot(out, v))
            if slope is not None:
                out.mul_(slope)
        dstep, dlow, drate = map(_total, sums)
        return (
            dx,
            dstep,
            None if dlow is None or slope is None else -dlow * slope,
            None if drate is None or slope is None else drate * step / rate,
            None,
            None,
        )


def _split(*tensors: Tensor) -> tuple[tuple[Tensor, ...], ...]:
    """The parts of each tensor; on other devices than a CPU they are one."""
    return tuple(parts(t) if in_parts(tensors[0]) else (t,) for t in tensors)


def _total(found: list[Tensor]) -> Tensor | None:
    """The sum of 0-dimensional tensors; of one itself, since a weight's operations cost more than its numbers."""
    return torch.stack(found).sum() if len(found) > 1 else found[0] if found else None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.dot(a, b) if a.dim() == 1 else (a * b).sum()


def _twice(
    x: Tensor, g: Tensor, step: Tensor, low: Tensor | None, rate: Tensor | None, delta: Tensor | None, levels: Levels
) -> tuple[Tensor | None, ...]:
    """The same gradients by operations that autograd follows through g; mask and rounding error are constants."""
    with torch.no_grad():
        scale = 1 / step if rate is None else rate
        v = _position_(x.clone(), low, scale)
        first, last = _open_ends(levels, x)
        clipped = _clip_(v.clone(), levels.lowest, levels.highest)
        inside, n = ((v > first) & (v < last)).to(x.dtype), clipped.round()
        factor = inside if rate is None else inside * step * rate
        spread = torch.zeros_like(v) if delta is None else delta / (levels.highest - levels.lowest) * (v - n)
        error = (clipped if levels.clip_step else n) - v * inside if rate is None else n - levels.zero_point
    dx = (g + g.abs() * spread) * factor
    drate = None if rate is None else (dx * v).sum() / rate.detach() ** 2
    return dx, (g * error).sum(), None if low is None else -dx.sum(), drate, None, None
