"""KD-SVD: Lee, Kim, Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018.

A map is X, (H W, C), of which the leading right singular vector stands for the place, for the student the one of its
first four that is most like the teacher's, with its sign. Of each two places that follow each other the loss compares
exp(-(v_c - w_d)^2 / 8) for all pairs of channels: the sum of squares over B.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from sqakd.kd.maps import Maps

LEADING, MORE = 1, 3  # vectors of the teacher, and more of the student's to choose from
WIDTH = 8.0  # of the radial basis function
GAP = 1e-6  # least difference of squared singular values, relative to the first, across which a gradient is taken


def kdsvd(fs: Maps, ft: Maps) -> Tensor:
    """Maps of all places; the same channels of both."""
    wanted = [leading(t.detach(), LEADING) for t in ft]
    found = [aligned(leading(s, LEADING + MORE), v) for s, v in zip(fs, wanted, strict=True)]
    pairs = zip(pairwise(found), pairwise(wanted), strict=True)
    return torch.stack([(_likeness(*s) - _likeness(*t)).square().sum() for s, t in pairs]).sum() / len(fs[0])


def _likeness(pair_a: Tensor, pair_b: Tensor) -> Tensor:
    """(B, C, k), (B, D, k) -> (B, C, D, k)."""
    return (-(pair_a[:, :, None] - pair_b[:, None]).square() / WIDTH).exp()


def aligned(v: Tensor, wanted: Tensor) -> Tensor:
    """Of v, (B, C, n), the vector of largest |cosine| with each of `wanted`, (B, C, k), with that sign."""
    cosine = v.detach().mT @ wanted
    best = cosine.abs().argmax(1, keepdim=True)
    sign = cosine.gather(1, best).sign()
    return v.gather(2, best.expand(-1, v.shape[1], -1)) * sign


def leading(f: Tensor, n: int) -> Tensor:
    """The first n right singular vectors of a map's (H W, C), (B, C, n).

    v_i = v_i0 + sum_(j != i) v_j (s_i v_j' dX' u_i + s_j u_j' dX v_i) / (s_i^2 - s_j^2) + (1 - V V') dX' u_i / s_i, dX
    = X - X0 = 0: exact first derivatives of the n vectors alone. torch's own divide by the differences of all pairs,
    which are 0 in maps that are 0; where they are nearly 0 here, that term is left out, as the paper truncates.
    """
    x = f.flatten(2).mT
    u, s, vh = torch.linalg.svd(x.detach(), full_matrices=False)
    v, d, n = vh.mT, x - x.detach(), min(n, s.shape[1])
    un, sn, vn = u[:, :, :n], s[:, None, :n], v[:, :, :n]
    gap, floor = sn.square() - s[:, :, None].square(), GAP * s[:, :1, None].square()
    inverse = torch.where(gap.abs() > floor, 1 / torch.where(gap == 0, 1, gap), 0)
    du = d.mT @ un
    inside = (v.mT @ du * sn + s[:, :, None] * (u.mT @ d @ vn)) * inverse
    outside = (du - v @ (v.mT @ du)) * torch.where(sn.square() > floor, 1 / sn.clamp(min=GAP), 0)
    found: Tensor = F.normalize(vn, dim=1) + v @ inside + outside
    return found
