"""Losses of the relations between the pictures of a batch; student's and teacher's features may differ in length.

SP: Tung, Mori, "Similarity-Preserving Knowledge Distillation", ICCV 2019 (arXiv 1907.09682), Eq. 2-4. RKD: Park, Kim,
Lu, Cho, CVPR 2019 (arXiv 1904.05068), Eq. 4-9. CC: Peng et al., "Correlation Congruence", ICCV 2019 (arXiv 1904.01802);
the released form. PKT: Passalis, Tefas, ECCV 2018 (arXiv 1803.10837), Eq. 4-9. Of a single picture all are 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sqakd.kd.maps import Maps

TINY = 1e-12  # squared distances are at least that
DISTANCE, ANGLE = 25.0, 50.0  # weights inside RKD
EPS = 1e-7  # of PKT


def similarity(fs: Maps, ft: Maps) -> Tensor:
    """SP: ||G_s - G_t||^2 / B^2, G: the inner products of the flattened maps, rows of unit length."""
    gs, gt = (F.normalize(f.flatten(1) @ f.flatten(1).T, dim=1) for f in (fs[0], ft[0].detach()))
    return F.mse_loss(gs, gt)


def rkd(fs: Maps, ft: Maps) -> Tensor:
    """RKD: 25 times smooth L1 of the distances over their mean, plus 50 times that of the cosines of all angles."""
    (ds, cs), (dt, ct) = (_geometry(f) for f in (fs[0], ft[0].detach()))
    return DISTANCE * F.smooth_l1_loss(ds, dt) + ANGLE * F.smooth_l1_loss(cs, ct)


def _geometry(f: Tensor) -> tuple[Tensor, Tensor]:
    """(B, D) -> distances over the mean of those above 0, (B, B); cosines at j of (i, j, k), (B, B, B)."""
    same = torch.eye(len(f), dtype=f.dtype, device=f.device)
    difference = f[None] - f[:, None]
    distance = difference.square().sum(2).clamp(min=TINY).sqrt() * (1 - same)
    unit = difference / (distance + same)[:, :, None]
    mean = distance.sum() / (distance > 0).sum().clamp(min=1)
    return distance / mean.clamp(min=TINY), unit @ unit.mT


class Correlation(nn.Module):
    """CC: two linear layers to one length; mean over i of |e_i| . |e_(i+1)|, e = student's - teacher's.

    Args:
        widths: of the student's and the teacher's features.
        dim: of the embeddings.
    """

    def __init__(self, widths: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.student, self.teacher = (nn.Linear(width, dim) for width in widths)

    def forward(self, fs: Maps, ft: Maps) -> Tensor:
        """Features (B, D) of both -> scalar."""
        difference = (self.student(fs[0]) - self.teacher(ft[0].detach())).abs()
        return (difference[:-1] * difference[1:]).sum() / max(len(difference) - 1, 1)


def pkt(fs: Maps, ft: Maps) -> Tensor:
    """PKT: mean over all pairs of p_t log(p_t / p_s); p: rows of (1 + cosine) / 2 over their sum."""
    ps, pt = (_probabilities(f) for f in (fs[0], ft[0].detach()))
    return (pt * ((pt + EPS) / (ps + EPS)).log()).mean()


def _probabilities(f: Tensor) -> Tensor:
    unit = F.normalize(f, dim=1)
    cosine = (unit @ unit.T + 1) / 2
    return cosine / cosine.sum(1, keepdim=True)
