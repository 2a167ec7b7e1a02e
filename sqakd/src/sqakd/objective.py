"""SQAKD: a low-bit student learns the outputs of its float teacher; no label is read.

Zhao, Zhao, "Self-Supervised Quantization-Aware Knowledge Distillation", AISTATS 2024:

    L = gamma CE(s, y) + alpha T^2 KL(softmax(t / T), softmax(s / T)),    gamma = 0, T = 4

s: logits of the quantized student, t: of the frozen teacher, which sees the same picture. Without a teacher (alpha 0)
it is training with labels, of a float net or a quantized one. The methods that it is compared with (`sqakd.kd`) add
beta times a loss of features inside both.

Deviations: with gamma 0 the authors still compute CE and multiply it by 0; here labels do not reach the objective. The
scale of EWGS follows the Hessian of L, whatever it is; theirs that of CE, by a call that their program has lost.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.losses.distillation import softened_divergence
from lowbit.models.captured import run_captured
from lowbit.quant.grad_scale import scale_by_hessian_
from lowbit.train.bn_statistics import fixed_statistics
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import batch_top1
from sqakd.kd.features import FeatureLoss, layout_of

HESSIAN_BATCHES = 3  # that the trace is averaged over


class Sqakd(Objective):
    """The loss of a student.

    Args:
        student: (B, C, H, W) -> (B, classes), float or under learned quantizers that have been initialised.
        optimizers: builds those of what is trained by name; called again whenever parameters may have been replaced.
        teacher: likewise, frozen; None where alpha is 0.
        alpha: of the divergence.
        gamma: of cross-entropy; 0: no labels are read.
        temperature: T.
        smoothing: of the labels.
        hessian_every: epochs between two settings of EWGS's scales from the Hessian; 0: none.
        method: a loss of features of both nets; its modules are trained with the student.
        beta: of it.
    """

    rebuilt = ("teacher",)
    compiled = {"student": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, student: nn.Module, optimizers: Callable[[nn.Module], dict[str, Optimizer]],
        teacher: nn.Module | None = None, *, alpha: float = 1.0, gamma: float = 0.0, temperature: float = 4.0,
        smoothing: float = 0.0, hessian_every: int = 0, method: FeatureLoss | None = None, beta: float = 1.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self._optimizers = student, optimizers
        self.teacher = nn.Identity() if teacher is None else teacher.requires_grad_(False).eval()
        self.alpha, self.gamma, self.temperature = 0.0 if teacher is None else alpha, gamma, temperature
        self.smoothing, self.hessian_every = smoothing, hessian_every
        self.method, self.beta = method, beta
        self.needs_labels = gamma > 0 or (method is not None and method.negatives is not None)
        self._pass = Pass()

    def optimizers(self) -> dict[str, Optimizer]:
        """Of the weights, "main", and of quantizers that have parameters, "quantizer"."""
        made = self._optimizers(nn.ModuleList(filter(None, (self.student, self.method))))
        self._pass = Pass(step=tuple(made))
        return made

    def passes(self, clock: Clock) -> tuple[Pass, ...]:
        """One, which steps both."""
        return (self._pass,)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`kl` with a teacher; `feature_loss` of the method; with labels `ce` and the accuracy `top1` in percent.

        Raises:
            ValueError: the loader gave no labels, and gamma is not 0.
        """
        x, parts, seen = batch.views[0], dict[str, Tensor](), None
        students, teachers = ((), ()) if self.method is None else (self.method.students, self.method.teachers)
        logits, loss = x.new_zeros(()), x.new_zeros(())
        if students or self.alpha or self.gamma:
            (logits,), maps = run_captured(self.student, students, (x,))
        else:
            maps = {}
        if self.alpha or self.method is not None:
            with torch.no_grad():
                (target,), taught = run_captured(self.teacher, teachers, (x,))
        if self.alpha:
            parts["kl"] = softened_divergence(logits, target, self.temperature)
            loss = loss + self.alpha * parts["kl"]
        if self.method is not None:
            parts["feature_loss"], seen = self.method(maps, taught, batch, clock)
            loss = loss + self.beta * parts["feature_loss"]
        if self.gamma:
            if batch.label is None:
                raise ValueError("gamma > 0 reads labels: build the loader with labels=True")
            parts["ce"] = F.cross_entropy(logits, batch.label, label_smoothing=self.smoothing)
            loss, parts["top1"] = loss + self.gamma * parts["ce"], batch_top1(logits.detach(), batch.label)
        return Out(loss, parts, None if seen is None else (seen, batch.index, layout_of(batch, clock)))

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """The method's memories take up what was seen."""
        if self.method is not None:
            self.method.update_([carry for carry in carries if carry is not None])

    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        """EWGS's scales from the Hessian of the loss on the epoch's first batches, not before the first epoch."""
        if self.hessian_every and clock.epoch and clock.epoch % self.hessian_every == 0:
            alone = clock._replace(rank=0, world=1)  # these batches are whole
            losses = (lambda b=b: self(b, alone, Pass(), None).loss for b in islice(batches(), HESSIAN_BATCHES))
            with fixed_statistics(self.student):
                found = scale_by_hessian_(self.student, losses, clock.generator("hessian"))
            self.records.append({"event": "hessian", "delta": sum(found.values()) / max(len(found), 1)})
        return False
