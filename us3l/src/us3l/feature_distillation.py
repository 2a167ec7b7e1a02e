"""Feature distillation: sub-networks imitate feature maps of the widest pass's target.

Cao, Sun, Zhou, CVPR 2023 (arXiv 2303.06870). A map of c of C channels is lifted to C by a 1x1 convolution, of whose
inputs the first c are used, and compared with the target's map of the other view. As in the authors' program the views
are different crops, so MSE compares places that show different parts of the picture.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.losses.cosine import Pair, SiameseLoss, cosine_loss
from lowbit.models.captured import Captured


def pooled_cosine(students: Pair, targets: Pair) -> Tensor:
    """`cosine_loss` of maps (B, C, H, W) summed over their places."""
    (s1, s2), (t1, t2) = students, targets
    return cosine_loss((s1.sum((2, 3)), s2.sum((2, 3))), (t1.sum((2, 3)), t2.sum((2, 3))))


class FeatureDistillation(nn.Module):
    """Lifts and loss; the lift of module `layer2.1.bn2` is the submodule `layer2_1_bn2`, the authors' name.

    Args:
        names: of the encoder's modules.
        channels: C of each.
        loss: of two views' maps.
        weight: of this loss in the objective.
    """

    def __init__(self, names: Sequence[str], channels: Sequence[int], loss: SiameseLoss, weight: float) -> None:
        super().__init__()
        self.names, self.loss, self.weight = tuple(names), loss, weight
        for name, c in zip(names, channels, strict=True):
            self.add_module(name.replace(".", "_"), nn.Conv2d(c, c, 1, bias=False))

    def forward(self, students: Captured, targets: Captured) -> Tensor:
        """The weighted mean over the modules; of each, the maps of two views."""
        total: Any = 0
        for name in self.names:
            weight: Any = self.get_submodule(name.replace(".", "_")).weight
            lifted: Any = [F.conv2d(x, weight[:, : x.shape[1]]) for x in students[name]]
            wanted: Any = targets[name]
            total = total + self.loss(lifted, wanted)
        loss: Tensor = self.weight * total / len(self.names)
        return loss
