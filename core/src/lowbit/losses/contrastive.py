"""Contrastive losses: NT-Xent over the batch (SimCLR), InfoNCE over a queue (MoCo) or over the batch (MoCo v3).

SimCLR: Chen, Kornblith, Norouzi, Hinton, "A Simple Framework for Contrastive Learning of Visual Representations",
ICML 2020 (arXiv 2002.05709), Eq. 1. MoCo: He et al., CVPR 2020 (arXiv 1911.05722), Eq. 1.
MoCo v3: Chen, Xie, He, "An Empirical Study of Training Self-Supervised Vision Transformers", ICCV 2021 (arXiv
2104.02057), Alg. 1.

Deviation: negatives come from the rank's own batch, unless a layout of ranks is given (in the paper, from all).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.ranks import Ranks, gather_rows


def nt_xent(first: Tensor, second: Tensor, temperature: float, layout: Ranks | None = None) -> Tensor:
    """-log(e^{s+/T} / sum_{j != i} e^{s_ij/T}), the mean over the 2B rows of both sets; s is the cosine.

    Row i of `first` and row i of `second` are each other's positive; all other rows of both sets are negatives. A set
    that is detached stands as a target: its rows are anchors and negatives without gradient.

    Args:
        first: one view's representations, (B, D), of any length; normalised here.
        second: the other view's, (B, D).
        temperature: T > 0.
        layout: negatives from all these ranks; None: from this one.

    Returns:
        Scalar.
    """
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    layout = layout or Ranks((len(first),))
    everything = torch.cat([gather_rows(first, layout), gather_rows(second, layout)])
    own = torch.arange(len(first), device=first.device) + layout.start  # columns of the anchors themselves
    n = sum(layout.sizes)
    own, positive = torch.cat([own, own + n]), torch.cat([own + n, own])
    logits = torch.cat([first, second]) @ everything.T / temperature
    logits = logits.scatter(1, own[:, None], -torch.inf)
    return F.cross_entropy(logits, positive)


def crossed_nt_xent(
    students: tuple[Tensor, Tensor], targets: tuple[Tensor, Tensor], temperature: float, layout: Ranks | None = None
) -> Tensor:
    """The mean over the two cross-view pairs of NT-Xent over (student of one view, stopped target of the other).

    Negatives are the rows of both sets, so also student against student and target against target. It is how SSQL is
    carried over to SimCLR here, and US3L's distillation loss: Cao, Sun, Zhang, "Universally Slimmable Self-supervised
    Learning", CVPR 2023 (arXiv 2303.06870), Sec. 3.

    Args:
        students: of view 1 and view 2, each (B, D).
        targets: likewise; detached here.
        temperature: T > 0.
        layout: as in `nt_xent`.
    """
    (q1, q2), (p1, p2) = students, targets
    pairs = ((q1, p2.detach()), (q2, p1.detach()))
    return sum((nt_xent(q, p, temperature, layout) for q, p in pairs), q1.new_zeros(())) / 2


def queue_logits(query: Tensor, key: Tensor, queue: Tensor, temperature: float) -> Tensor:
    """Similarities [q.k+, q.queue] / T, (B, 1 + K); the positive is column 0.

    Args:
        query: normalised, (B, D).
        key: the positives, normalised, (B, D); detached here.
        queue: the negatives as columns, (D, K); not copied, so enqueue after the backward pass (torch refuses else).
        temperature: T > 0.
    """
    positive = torch.einsum("nc,nc->n", query, key.detach())[:, None]
    negative = query @ queue.detach()
    return torch.cat([positive, negative], dim=1) / temperature


def info_nce(logits: Tensor) -> Tensor:
    """Cross-entropy of `queue_logits` with the positive in column 0; scalar."""
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))


def crossed_info_nce(
    queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], temperature: float, layout: Ranks | None = None
) -> Tensor:
    """MoCo v3: 2 T times the cross-entropy of each view's queries among the other view's keys, summed over both pairs.

    Args:
        queries: of view 1 and view 2, each (B, D); row i belongs to row i of the other view's keys.
        keys: likewise; detached here.
        temperature: T > 0.
        layout: keys of all these ranks; None: of this one.
    """
    (q1, q2), (k1, k2) = queries, keys
    layout = layout or Ranks((len(q1),))
    own = torch.arange(len(q1), device=q1.device) + layout.start
    loss = q1.new_zeros(())
    for q, k in ((q1, k2), (q2, k1)):
        logits = F.normalize(q, dim=1) @ gather_rows(F.normalize(k.detach(), dim=1), layout).T / temperature
        loss = loss + 2 * temperature * F.cross_entropy(logits, own)
    return loss
