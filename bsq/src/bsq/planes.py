"""Weights as bit planes: pure functions between floats, signed planes and integer codes.

Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network Quantization", ICLR 2021
(arXiv 2102.10462), Sec. 3: Eq. 2 (reconstruction), Eq. 4-5 (group lasso), Sec. 3.3 (re-quantisation).

A tensor with N magnitude bits is p, n of shape w.shape + (N,), index 0 the most significant plane, and one scale s:
code = round(clip(sum_i (p_i - n_i) 2^(N-1-i), -L, L)) with L = 2^N - 1, half to even, and w = code * (s / L).
The sign is not one of the N bits (N = 1 is ternary); stored, a code needs N + 1.

Deviations from the authors' program: the step s / L is formed first, so that a weight is exactly code * step (their
order of the same product differs in the last bit); a threshold above 0 that drops several most significant planes
saturates the weights of all of them (theirs only those of the last, which sends the largest weights to 0); the group
lasso of a convolution's bias has the factor of every other tensor.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_BITS = 16  # float32 holds every code and the products on the way to it exactly enough


class Planes(NamedTuple):
    """One tensor in bit form: `p` and `n` of shape (..., N) in the weight's dtype, `scale` 0-dimensional."""

    p: Tensor
    n: Tensor
    scale: Tensor

    @property
    def bits(self) -> int:
        """Magnitude bits N, empty planes counted."""
        return self.p.shape[-1]


def top(bits: int) -> int:
    """The largest code L of N magnitude bits; 1 for 0 bits, so that it can be divided by."""
    return max(2**bits - 1, 1)


def place_values(bits: int, like: Tensor) -> Tensor:
    """2^(N-1), ..., 2, 1 as a tensor (N,) of the dtype and device of `like`; made there, without a copy."""
    return (1 << torch.arange(bits - 1, -1, -1, device=like.device)).to(like.dtype)


def full_precision(x: Tensor) -> AbstractContextManager[Any]:
    """No autocast where `x` is: half precision would lose the low planes. Devices without it refuse the context."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def weighted_sum(p: Tensor, n: Tensor) -> Tensor:
    """sum_i (p_i - n_i) 2^(N-1-i): the code before clipping and rounding, shape p.shape[:-1]."""
    with full_precision(p):
        v = place_values(p.shape[-1], p)
        return p @ v - n @ v


def codes(p: Tensor, n: Tensor) -> Tensor:
    """Integer codes in [-L, L] (in the planes' dtype), shape p.shape[:-1]."""
    limit = top(p.shape[-1])
    return weighted_sum(p, n).clamp_(-limit, limit).round_()


def latent_codes(r: Tensor, bits: int) -> Tensor:
    """Integer codes of a latent weight `r` (used clipped to [-1, 1]) with `bits` magnitude bits; 0 bits: all zero."""
    return r.clamp(-1, 1).mul_(2**bits - 1).round_()


def step(scale: Tensor, bits: int) -> Tensor:
    """The value of one code, s / L, in the dtype of `scale`."""
    return scale / top(bits)


class _FromPlanes(torch.autograd.Function):
    """w = code s / L, straight through round and clip: d_p_i = g s 2^(N-1-i) / L = -d_n_i, d_s = sum g code / L."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, n: Tensor, scale: Tensor) -> Tensor:
        code, ctx.bits = codes(p, n), p.shape[-1]
        ctx.save_for_backward(code, scale)
        return code * step(scale, ctx.bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code, scale = ctx.saved_tensors
        d_p = (grads[0] * scale).unsqueeze(-1) * (place_values(ctx.bits, scale) / top(ctx.bits))
        return d_p, -d_p, (grads[0] * (code / top(ctx.bits))).sum()


class _FromLatent(torch.autograd.Function):
    """w = round(clip(r) L) s / L, straight through round and clip: d_r = g s (0 for 0 bits), d_s = sum g code / L."""

    @staticmethod
    def forward(ctx: Any, r: Tensor, scale: Tensor, bits: int) -> Tensor:
        code, ctx.bits = latent_codes(r, bits), bits
        ctx.save_for_backward(code, scale)
        return code * step(scale, bits)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        code, scale = ctx.saved_tensors
        return grads[0] * (scale * bool(ctx.bits)), (grads[0] * (code / top(ctx.bits))).sum(), None


def reconstruct(p: Tensor, n: Tensor, scale: Tensor) -> Tensor:
    """The weight code * (s / L) of planes, shape p.shape[:-1]; the gradient passes round and clip."""
    return _FromPlanes.apply(p, n, scale)


def reconstruct_latent(r: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The weight code * (s / L) of a latent weight; the gradient passes round and clip, none where bits is 0."""
    return _FromLatent.apply(r, scale, bits)


def encode(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes (int32) and scale = max|w| of a float tensor.

    Computed in float32, multiplied before dividing: some weights of trained nets lie so near a tie that any other
    order moves their code. An all-zero tensor, and 0 bits, give codes 0 and scale 0.
    """
    w32 = w.detach().float()
    scale = w32.abs().amax() if bits else w32.new_zeros(())
    code = (w32.abs() * (2**bits - 1) / torch.where(scale > 0, scale, 1)).round_() * w32.sign()
    return code.to(torch.int32), scale.to(w.dtype)


def to_planes(code: Tensor, bits: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Binary planes p (positive codes) and n (negative codes) of integer codes, of the dtype and device of `like`."""
    place = torch.tensor([2**i for i in reversed(range(bits))], dtype=torch.int32, device=code.device)
    code = code.to(torch.int32)
    p, n = ((part.clamp(min=0).unsqueeze(-1) & place).ne(0).to(like) for part in (code, -code))
    return p, n


def from_float(w: Tensor, bits: int) -> Planes:
    """Float weights to planes. 0 bits build the one empty plane of a dead tensor."""
    code, scale = encode(w, bits)
    return Planes(*to_planes(code, max(bits, 1), w), scale)


def is_dead(p: Tensor, n: Tensor) -> bool:
    """Whether no plane holds anything, so that the tensor is zero and needs no bit."""
    return torch.equal(p, n)


def ones(p: Tensor, n: Tensor) -> Tensor:
    """Percent of the weights whose bit is set (p != n), per plane, (N,), float64."""
    return (p != n).flatten(0, -2).double().mean(0) * 100


def requantize(planes: Planes, max_bits: int = 8) -> Planes:
    """Round real-valued planes back to binary ones; the width grows by one where the codes outgrew it (Sec. 3.3).

    There is no clip to [-1, 1] here, as in the authors' program, while the forward clips: where planes grew beyond 1
    the weight changes at this instant. That is how a width grows. Tensors of `max_bits` or more saturate instead.
    """
    p, n, scale = (t.detach() for t in planes)
    code, bits = weighted_sum(p, n).round_(), planes.bits
    if bits >= max_bits:
        code = code.clamp_(-top(bits), top(bits))
    elif bool(code.abs().amax() > top(bits)):  # bits are at most 2, so one more always suffices
        scale = scale * top(bits + 1) / top(bits)
        bits += 1
        code = code.clamp_(-top(bits), top(bits))
    return Planes(*to_planes(code, bits, p), scale)


def prune(planes: Planes, threshold: float = 0.0, at_least: int = 1) -> Planes:
    """Drop planes that (almost) nobody uses; the weights are unchanged for threshold 0.

    Args:
        planes: usually just re-quantised.
        threshold: percent of the weights. Most significant planes go while empty or below it (the weights that used
            them saturate), then least significant ones while at or below it (truncation).
        at_least: planes that stay in any case, 1 or more.
    """
    p, n, scale = (t.detach() for t in planes)
    percent, bits = ones(p, n).tolist(), planes.bits
    first, last = 0, bits
    while last - first > at_least and (percent[first] == 0 or percent[first] < threshold):
        first += 1
    while last - first > at_least and percent[last - 1] <= threshold:
        last -= 1
    kept = []
    for plane in (p, n):
        kept_planes = plane[..., first:last]
        if any(percent[:first]):
            kept_planes = (kept_planes + plane[..., :first].amax(-1, keepdim=True)).clamp_(max=1)
        kept.append(kept_planes.contiguous())
    if first or last < bits:
        scale = scale * (2 ** (bits - last) * top(last - first)) / top(bits)
    return Planes(kept[0], kept[1], scale)


def group_norms(p: Tensor, n: Tensor) -> Tensor:
    """sqrt(1e-8 + ||p_i||^2 + ||n_i||^2) of every plane i, (N,)."""
    return joint(torch.cat([squares(x.movedim(-1, 0).unsqueeze(0)) for x in (p, n)]))


def group_lasso(p: Tensor, n: Tensor) -> Tensor:
    """The scalar numel N sum_i sqrt(1e-8 + ||p_i||^2 + ||n_i||^2) (Eq. 4-5 before the division by all weights)."""
    return group_norms(p, n).sum() * (p[..., 0].numel() * p.shape[-1])


# Both sets of planes as one block (2, N, ...), p over n, each plane contiguous: the form in which `bsq.sgd` moves them


def to_block(p: Tensor, n: Tensor) -> Tensor:
    """A new block of planes of shape (..., N), without a gradient."""
    halves = [x.detach().movedim(-1, 0) for x in (p, n)]
    return torch.stack(halves, out=p.new_empty((2, *halves[0].shape)))  # one copy, and contiguous


def from_block(block: Tensor) -> tuple[Tensor, Tensor]:
    """Views of shape (..., N): positive and negative planes."""
    p, n = block.movedim(1, -1).unbind()
    return p, n


def signed_places(bits: int, like: Tensor) -> Tensor:
    """Place values of a block's 2 N planes, (2 N,): those of n are negative."""
    v = place_values(bits, like)
    return torch.cat((v, -v))


def block_codes(block: Tensor, signed: Tensor) -> Tensor:
    """`codes` of a block, given its `signed_places`: shape block.shape[2:]."""
    limit = top(block.shape[1])
    with full_precision(block):
        code = torch.mv(block.view(len(signed), -1).t(), signed)  # not `@`, which may take TF32 and lose the low planes
    return code.clamp_(-limit, limit).round_().view(block.shape[2:])


def squares(block: Tensor) -> Tensor:
    """||p_i||^2 and ||n_i||^2, (2, N)."""
    rows = block.flatten(2)
    return torch.linalg.vecdot(rows, rows)


def joint(squares: Tensor) -> Tensor:
    """Group norms from `squares`, (N,)."""
    return (squares.sum(0) + 1e-8).sqrt()
