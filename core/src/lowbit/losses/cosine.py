"""Losses of the siamese methods: predictions against stopped targets of the other view.

SimSiam: Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv 2011.10566), Eq. 1-2.
BYOL: Grill et al., "Bootstrap Your Own Latent", NeurIPS 2020 (arXiv 2006.07733), Eq. 2; the same up to constants.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]  # of view 1 and view 2, each (B, D)
SiameseLoss = Callable[[Pair, Pair], Tensor]


def negative_cosine(p: Tensor, z: Tensor) -> Tensor:
    """Mean of -cos(p, z) over the batch; the gradient reaches `p` alone.

    Args:
        p: predictions, (B, D).
        z: targets, (B, D); detached here, so that no caller can forget it.

    Returns:
        Scalar in [-1, 1].
    """
    return -F.cosine_similarity(p, z.detach(), dim=-1).mean()


def cosine_loss(predictions: Pair, targets: Pair) -> Tensor:
    """Each view's prediction against the other view's target, halved: in [-1, 1]."""
    (p1, p2), (z1, z2) = predictions, targets
    return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2


def squared_distance_loss(predictions: Pair, targets: Pair) -> Tensor:
    """The squared distances of the normalised vectors, 2 - 2 cos, summed over both pairs: in [0, 8].

    BYOL's own form: four times the gradient of `cosine_loss`.
    """
    (p1, p2), (z1, z2) = predictions, targets
    return 4 + 2 * (negative_cosine(p1, z2) + negative_cosine(p2, z1))
