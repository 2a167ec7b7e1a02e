"""What a loader hands to the loop."""

from typing import NamedTuple

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
