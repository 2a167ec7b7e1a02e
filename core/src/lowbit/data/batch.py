"""What a loader hands to the loop."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One process's share of one global batch, augmented, on the compute device.

    Attributes:
        views: one tensor (B, C, H, W) per augmented view.
        index: position of each picture in the dataset, (B,), int64.
        label: class of each picture, (B,), int64; None where the objective may not see labels.
        share: n_local * world / n_global. The loop multiplies the loss by it, since DDP averages ranks, not pictures.
    """

    views: tuple[Tensor, ...]
    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which a batch has no use for
    label: Tensor | None = None
    share: float = 1.0

    def to(self, device: torch.device) -> "Batch":
        """The batch on `device`; itself where it is there already."""
        if self.index.device == device:
            return self
        label = None if self.label is None else self.label.to(device)
        return Batch(tuple(view.to(device) for view in self.views), self.index.to(device), label, self.share)
