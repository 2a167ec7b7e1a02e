"""A switchable net trained with labels: Yu et al., "Slimmable Neural Networks", ICLR 2019 (arXiv 1812.08928), Alg. 1.

At the widest width cross-entropy with the label; at the others, with the probabilities that the widest net just gave
(in-place distillation; Yu, Huang, ICCV 2019, Sec. 3.3), or with the label. Each width has batch norms of its own.

Deviation: an optimizer step after each width by default, as later nets of all widths are trained (Cao, Sun, Zhou, CVPR
2023); `step_per_batch` is the paper's single one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.data.loader import EvalLoader
from lowbit.evaluate.classify import classify
from lowbit.evaluate.linear import accuracy_line
from lowbit.slim.layers import at_width
from lowbit.slim.widths import show_width
from lowbit.train.epochs import Due
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.run import Probe
from lowbit.train.session import Session
from lowbit.train.supervised import batch_top1


class SlimmableTraining(Objective):
    """Cross-entropy of a slimmable classifier at each of its widths.

    Args:
        student: classifier, (B, C, H, W) -> (B, classes).
        widths: one or more.
        optimizer: builds the optimizer; called again whenever parameters may have been replaced.
        distills: whether narrower nets learn from the widest.
        step_per_batch: one optimizer step for all widths.
    """

    needs_labels = True
    compiled = {"student": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, student: nn.Module, widths: Sequence[float], optimizer: Callable[[nn.Module], Optimizer], *,
        distills: bool = True, step_per_batch: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self._optimizer, self.distills = student, optimizer, distills
        self.widths = tuple(sorted(widths, reverse=True))
        step = () if step_per_batch else ("main",)
        self._passes = [*(Pass(width, step) for width in self.widths[:-1]), Pass(self.widths[-1])]

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimizer(self.student)}

    def passes(self, clock: Clock) -> Sequence[Pass]:
        """One per width, the widest first."""
        return self._passes

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss_W` and the training accuracy `top1_W` in percent, at width W; carries the widest net's probabilities.

        Raises:
            ValueError: the loader gave no labels.
        """
        if batch.label is None:
            raise ValueError("SlimmableTraining reads labels: build the loader with labels=True")
        with at_width(self.student, pas.variant):
            logits = self.student(batch.views[0])
        loss = F.cross_entropy(logits, batch.label if carry is None or not self.distills else carry)
        at, detached = show_width(pas.variant), logits.detach()
        parts = {f"loss_{at}": loss.detach(), f"top1_{at}": batch_top1(detached, batch.label)}
        return Out(loss, parts, detached.softmax(1) if carry is None else carry)


def evaluate_widths(session: Session, test: EvalLoader, widths: Sequence[float], due: Due) -> Probe:
    """For `Run.probes`: `top1_W`, `top5_W`, `loss_W` of the objective's `student` at each width W, and a line each.

    Args:
        session: of the command.
        test: pictures with labels.
        widths: that are evaluated; `top1` is that of the first.
        due: after which epochs.
    """

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if not due(clock):
            return {}
        values: dict[str, float] = {}
        student = objective.get_submodule("student")
        for width in widths:
            at = show_width(width)
            with at_width(student, width):
                scores = classify(student, test, session.accelerator)
            session.say(f"{accuracy_line(scores)} at width {at}")
            values |= {f"top1_{at}": scores.top1, f"top5_{at}": scores.top5, f"loss_{at}": scores.loss}
        return {"top1": values[f"top1_{show_width(widths[0])}"], **values}

    return probe
