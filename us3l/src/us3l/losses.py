"""Losses by the authors' names, and feature distillation: sub-networks imitate feature maps of the target.

Cao, Sun, Zhou, CVPR 2023 (arXiv 2303.06870). As in the authors' program, maps of different crops are compared place by
place. Deviation: `CosineSimilarityv2` is 2 - 2 cos, as in the SSQL authors' program (theirs is plus cos, which repels).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.losses.contrastive import crossed_info_nce, crossed_nt_xent, info_nce, nt_xent, queue_logits
from lowbit.losses.cosine import Pair, SiameseLoss, cosine_loss, squared_distance_loss
from lowbit.losses.distillation import crossed_mse, similarity_distillation
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import Ranks
from lowbit.models.captured import Captured

Loss = Callable[[Any, Any, Ranks], Tensor]  # of predictions and targets, of each view (B, D), on these ranks


def loss_of(name: str, temperature: float, keys: KeyQueue | None = None, teacher_temperature: float = 1.0) -> Loss:
    """A loss by the authors' name.

    Args:
        name: a key below.
        temperature: of the predictions; but for SEED's loss of the targets, too.
        keys: the queue of MoCo's loss and of SEED's, which are of one view.
        teacher_temperature: of the targets of SEED's loss.
    """

    def queued(loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Loss:
        def of_first_view(p: Any, z: Any, _: Any) -> Tensor:
            assert keys is not None
            return loss(F.normalize(p[0], dim=1), F.normalize(z[0], dim=1), keys.queue)

        return of_first_view

    losses: dict[str, Loss] = {
        "CosineSimilarity": lambda p, z, _: cosine_loss(p, z),
        "CosineSimilarityv2": lambda p, z, _: squared_distance_loss(p, z),
        "InfoNCEv2": lambda p, _z, _: nt_xent(p[0], p[1], temperature),
        "InfoNCEv2_distill": lambda p, z, _: crossed_nt_xent(p, z, temperature),
        "InfoNCE": lambda p, z, layout: crossed_info_nce(p, z, temperature, layout),
        "MSELoss": lambda p, z, _: crossed_mse(p, z),
        "CrossEntropy": queued(lambda q, k, queue: info_nce(queue_logits(q, k, queue, temperature))),
        "soft_distill": queued(
            lambda s, t, queue: similarity_distillation(s, t, queue, temperature, teacher_temperature)[0]
        ),
    }
    return losses[name]


def pooled_cosine(students: Pair, targets: Pair) -> Tensor:
    """`cosine_loss` of maps (B, C, H, W) summed over their places."""
    (s1, s2), (t1, t2) = students, targets
    return cosine_loss((s1.sum((2, 3)), s2.sum((2, 3))), (t1.sum((2, 3)), t2.sum((2, 3))))


MAPS: dict[str, SiameseLoss] = {"": crossed_mse, "MSELoss": crossed_mse, "CosineSimilarity": pooled_cosine}


class FeatureDistillation(nn.Module):
    """A map of c of C channels is lifted to C by the first c inputs of a 1x1 convolution, then compared.

    Args:
        names: the authors', of modules; the lift of `layer2.1.bn2` is the submodule `layer2_1_bn2`.
        channels: C of each.
        loss: of two views' maps, each with the target's map of the other view.
        weight: of this loss in the objective.
        modules: their names in the encoder, where these are others.
    """

    def __init__(
        self, names: Sequence[str], channels: Sequence[int], loss: SiameseLoss, weight: float,
        modules: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.names, self.loss, self.weight = tuple(modules or names), loss, weight
        for name, c in zip(names, channels, strict=True):
            self.add_module(name.replace(".", "_"), nn.Conv2d(c, c, 1, bias=False))

    def forward(self, students: Captured, targets: Captured) -> Tensor:
        """The weighted mean over the modules; of each, the maps of two views."""
        total: Any = 0
        for name, lift in zip(self.names, self.children(), strict=True):
            weight: Any = lift.weight
            lifted: Any = [F.conv2d(x, weight[:, : x.shape[1]]) for x in students[name]]
            wanted: Any = targets[name]
            total = total + self.loss(lifted, wanted)
        loss: Tensor = self.weight * total / len(self.names)
        return loss
