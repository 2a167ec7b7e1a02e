"""Losses by the authors' names.

Deviation: `CosineSimilarityv2` is 2 - 2 cos, as in the SSQL authors' program (theirs is plus cos, which repels).
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.contrastive import crossed_info_nce, crossed_nt_xent, info_nce, nt_xent, queue_logits
from lowbit.losses.cosine import SiameseLoss, cosine_loss, squared_distance_loss
from lowbit.losses.distillation import crossed_mse, similarity_distillation
from lowbit.losses.queue import KeyQueue
from us3l.feature_distillation import pooled_cosine
from us3l.objective import Loss

MAPS: dict[str, SiameseLoss] = {"": crossed_mse, "MSELoss": crossed_mse, "CosineSimilarity": pooled_cosine}


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
