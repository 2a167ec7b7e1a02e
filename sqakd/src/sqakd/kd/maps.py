"""Losses that compare maps (B, C, H, W) at several places of student and teacher, without parameters.

AT: Zagoruyko, Komodakis, ICLR 2017 (arXiv 1612.03928), Eq. 2. NST: Huang, Wang, 2017 (arXiv 1707.01219), Sec. 3.2. FSP:
Yim, Joo, Bae, Kim, "A Gift from Knowledge Distillation", CVPR 2017, Eq. 1-2. Of two maps the larger is averaged to the
size of the smaller. The teacher's are detached; losses are sums over the places.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

Maps = Sequence[Tensor]


def same_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both at the smaller one's height, by average pooling of the other."""
    side = min(a.shape[2], b.shape[2])
    pooled = (x if x.shape[2] == side else F.adaptive_avg_pool2d(x, (side, side)) for x in (a, b))
    first, second = pooled
    return first, second


def total(loss: Callable[[Tensor, Tensor], Tensor], fs: Maps, ft: Maps) -> Tensor:
    """The sum of a loss of (student's, teacher's) over the places."""
    return torch.stack([loss(s, t.detach()) for s, t in zip(fs, ft, strict=True)]).sum()


def attention(fs: Maps, ft: Maps) -> Tensor:
    """AT: mean squared error of a = (mean over c of f_c^2) / its length over the positions; any channels."""

    def of(s: Tensor, t: Tensor) -> Tensor:
        s, t = same_size(s, t)
        return F.mse_loss(attention_of(s), attention_of(t))

    return total(of, fs, ft)


def attention_of(f: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H W), of unit length."""
    return F.normalize(f.square().mean(1).flatten(1), dim=1)


def nst(fs: Maps, ft: Maps) -> Tensor:
    """NST: the maximum mean discrepancy of the channels' maps u, v of unit length, under the kernel (u.v)^2.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t), over pictures and pairs of channels; any channels.
    """

    def of(s: Tensor, t: Tensor) -> Tensor:
        u, v = (F.normalize(f.flatten(2), dim=2) for f in same_size(s, t))
        tt, ss, st = ((a @ b.mT).square().mean() for a, b in ((v, v), (u, u), (u, v)))
        return tt + ss - 2 * st

    return total(of, fs, ft)


def fsp(fs: Maps, ft: Maps) -> Tensor:
    """FSP: mean squared error of the flow G = A B' / (H W), (B, C_A, C_B), of each two places in a row."""
    return total(F.mse_loss, flows(fs), flows(ft))


def flows(maps: Maps) -> list[Tensor]:
    """The flow of each two places in a row."""
    found = []
    for pair in pairwise(maps):
        a, b = (f.flatten(2) for f in same_size(*pair))
        found.append(a @ b.mT / a.shape[2])
    return found
