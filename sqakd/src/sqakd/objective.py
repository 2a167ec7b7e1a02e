"""SQAKD: a low-bit student learns the outputs of its float teacher; no label is read.

Zhao, Zhao, "Self-Supervised Quantization-Aware Knowledge Distillation", AISTATS 2024:

    L = gamma CE(s, y) + alpha T^2 KL(softmax(t / T), softmax(s / T)),    gamma = 0, T = 4

s: logits of the quantized student, t: of the frozen teacher, which sees the same picture. Without a teacher (alpha 0)
it is training with labels, of a float net or a quantized one.

Deviations: with gamma 0 the authors still compute CE and multiply it by 0; here labels do not reach the objective. The
scale of EWGS follows the Hessian of L, whatever it is; theirs that of CE, by a call that their program has lost.
"""

from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.losses.distillation import softened_divergence
from lowbit.quant.grad_scale import scale_by_hessian_
from lowbit.quant.learned_layers import quantizer_parameters
from lowbit.train.bn_statistics import fixed_statistics
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import batch_top1

HESSIAN_BATCHES = 3  # that the trace is averaged over


class Sqakd(Objective):
    """The loss of a student.

    Args:
        student: (B, C, H, W) -> (B, classes), float or under learned quantizers that have been initialised.
        optimizers: builds those of the student by name; called again whenever parameters may have been replaced.
        teacher: likewise, frozen; None where alpha is 0.
        alpha: of the divergence.
        gamma: of cross-entropy; 0: no labels are read.
        temperature: T.
        smoothing: of the labels.
        hessian_every: epochs between two settings of EWGS's scales from the Hessian; 0: none.
    """

    rebuilt = ("teacher",)
    compiled = {"student": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, student: nn.Module, optimizers: Callable[[nn.Module], dict[str, Optimizer]],
        teacher: nn.Module | None = None, *, alpha: float = 1.0, gamma: float = 0.0, temperature: float = 4.0,
        smoothing: float = 0.0, hessian_every: int = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self._optimizers = student, optimizers
        self.teacher = nn.Identity() if teacher is None else teacher.requires_grad_(False).eval()
        self.alpha, self.gamma, self.temperature = 0.0 if teacher is None else alpha, gamma, temperature
        self.smoothing, self.hessian_every = smoothing, hessian_every
        self.needs_labels = gamma > 0
        self._pass = Pass(step=("main", "quantizer") if quantizer_parameters(student) else ("main",))

    def optimizers(self) -> dict[str, Optimizer]:
        """Of the weights, "main", and of quantizers that have parameters, "quantizer"."""
        return self._optimizers(self.student)

    def passes(self, clock: Clock) -> tuple[Pass, ...]:
        """One, which steps both."""
        return (self._pass,)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`kl` with a teacher; `ce` and the training accuracy `top1` in percent with labels.

        Raises:
            ValueError: the loader gave no labels, and gamma is not 0.
        """
        x, parts = batch.views[0], dict[str, Tensor]()
        logits = self.student(x)
        loss = logits.new_zeros(())
        if self.alpha:
            with torch.no_grad():
                target = self.teacher(x)
            parts["kl"] = softened_divergence(logits, target, self.temperature)
            loss = loss + self.alpha * parts["kl"]
        if self.gamma:
            if batch.label is None:
                raise ValueError("gamma > 0 reads labels: build the loader with labels=True")
            parts["ce"] = F.cross_entropy(logits, batch.label, label_smoothing=self.smoothing)
            loss, parts["top1"] = loss + self.gamma * parts["ce"], batch_top1(logits.detach(), batch.label)
        return Out(loss, parts)

    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        """EWGS's scales from the Hessian of the loss on the epoch's first batches, not before the first epoch."""
        if self.hessian_every and clock.epoch and clock.epoch % self.hessian_every == 0:
            losses = (lambda b=b: self(b, clock, Pass(), None).loss for b in islice(batches(), HESSIAN_BATCHES))
            with fixed_statistics(self.student):
                found = scale_by_hessian_(self.student, losses, clock.generator("hessian"))
            self.records.append({"event": "hessian", "delta": sum(found.values()) / max(len(found), 1)})
        return False
