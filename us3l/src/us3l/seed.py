"""Distillation from a frozen self-supervised teacher into one width (SEED), and two plainer ways to do it.

SEED: Fang et al., "SEED: Self-supervised Distillation For Visual Representation", ICLR 2021 (arXiv 2101.04731): the
student's similarities to a queue of the teacher's outputs follow the teacher's. SEED_MSE and SEED_SimCLR of the US3L
authors' program compare two views of the student, with and without a predictor, with the teacher's other view.

Deviation: one view is shown to both nets, as in the SEED paper; the queue wraps inside a batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.evaluate.collapse import unit_std
from lowbit.losses.distillation import similarity_distillation
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import ranks_of
from lowbit.train.protocol import Clock, Objective, Out, Pass
from us3l.group_decay import GroupDecay
from us3l.layers import at_width
from us3l.plan import Loss


class Seed(Objective):
    """A student against a teacher.

    Args:
        encoder_q: the student, (B, C, H, W) -> (B, D).
        encoder_k: the teacher, likewise; frozen here, in evaluation mode, and not in checkpoints.
        optimize: builds the optimizer of this objective's trained parameters.
        width: of the student.
        loss: of both views' predictions and targets; None: SEED's, of one view, with `keys`.
        predictor: (B, D) -> (B, D), in front of `loss`.
        keys: the queue.
        temperatures: of the student and of the teacher, for SEED's loss.
        decay: group regularization.
    """

    rebuilt = ("encoder_k",)
    compiled = {"encoder_q": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, encoder_q: nn.Module, encoder_k: nn.Module, optimize: Callable[[nn.Module], Optimizer], *,
        width: float, loss: Loss | None = None, predictor: nn.Module | None = None, keys: KeyQueue | None = None,
        temperatures: tuple[float, float] = (1.0, 1.0), decay: GroupDecay | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder_q, self.encoder_k, self._optimize = encoder_q, encoder_k.requires_grad_(False), optimize
        self.width, self.loss, self.predictor, self.keys, self.temperatures = width, loss, predictor, keys, temperatures
        self.decay, self.n_views = decay, 1 if keys is not None else 2

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimize(self)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss` and `z_std` of the student; the teacher's outputs are carried to the queue."""
        layout = ranks_of(len(batch.index), batch.share)
        with at_width(self.encoder_q, self.width):
            f = tuple(self.encoder_q(x) for x in batch.views)
        with torch.no_grad():
            t = tuple(self.encoder_k(x) for x in batch.views)
        if self.keys is not None:
            student, teacher = F.normalize(f[0], dim=1), F.normalize(t[0], dim=1)
            loss, _ = similarity_distillation(student, teacher, self.keys.queue, *self.temperatures)
        else:
            assert self.loss is not None
            loss = self.loss(tuple(map(self.predictor, f)) if self.predictor is not None else f, t, layout)
        return Out(loss, {"z_std": unit_std(f[0].detach())}, (t[0], layout))

    def before_step(self, clock: Clock, pas: Pass) -> None:
        """Group regularization."""
        if self.decay is not None:
            self.decay.add_(self, self.width, clock)

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Enqueue the teacher's outputs of the whole batch, of all processes."""
        if self.keys is not None:
            for teacher, layout in carries:
                self.keys.enqueue_(F.normalize(teacher, dim=1), layout)
