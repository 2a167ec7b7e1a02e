"""Plain supervised training: one picture, one label, cross-entropy, one optimizer."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.train.protocol import Clock, Objective, Out, Pass


def batch_top1(logits: Tensor, label: Tensor | int) -> Tensor:
    """Accuracy of one batch in percent, in single precision at least; logits (B, C), label (B,) or one for all."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return (logits.argmax(1) == label).to(dtype).mean() * 100


class Supervised(Objective):
    """Cross-entropy of a classifier.

    Args:
        student: classifier, (B, C, H, W) -> (B, classes).
        optimizer: builds its optimizer; called again whenever parameters may have been replaced.
    """

    needs_labels = True
    compiled = {"student": False}  # noqa: RUF012 (read-only)

    def __init__(self, student: nn.Module, optimizer: Callable[[nn.Module], Optimizer]) -> None:
        super().__init__()
        self.student = student
        self._optimizer = optimizer

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimizer(self.student)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss`, and the training accuracy `top1` in percent.

        Raises:
            ValueError: the loader gave no labels.
        """
        if batch.label is None:
            raise ValueError("Supervised reads labels: build the loader with labels=True")
        logits = self.student(batch.views[0])
        loss = F.cross_entropy(logits, batch.label)
        return Out(loss, {"top1": batch_top1(logits.detach(), batch.label)})
