"""BSQ's two phases as objectives: bit-level sparsity finds each layer's precision, then fine-tuning at fixed precision.

Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision Neural Network Quantization", ICLR 2021
(arXiv 2102.10462): loss = CE + alpha * sum_l #Para(l) #Bit(l) / #Para * B_GL(W^l) (Eq. 4-5); every `interval` epochs
and at the end planes are re-quantised and empty ones dropped (Sec. 3.3). The gradient of the group lasso and the clamp
of planes to [0, 2] are in `bsq.sgd`.

Deviations from the authors' program: only bit planes are clamped (theirs also zeroes the negative weights of
shortcuts); strength 0 means no lasso instead of a crash; in fine-tuning only the latents of bit layers are clamped, and
the last layer's bias takes part.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from bsq import target
from bsq.compression import size
from bsq.network import Width, bit_layers, nbit_dict, ones_per_plane, prune_, requantize_
from bsq.sgd import PlaneSGD
from lowbit.data.batch import Batch
from lowbit.options import SgdOptions
from lowbit.train.optim import stated_optimizer
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import batch_top1

Evaluate = Callable[[Clock, nn.Module, Literal["before", "after"]], Mapping[str, float]]


class BitSparsity(Objective):
    """Training in bit form.

    Args:
        student: classifier in bit form.
        sgd: rates and decay; another optimizer, if they state one, is that of what is no plane.
        strength: alpha, the group lasso's weight; 0: none.
        interval: epochs between re-quantisations, the first before the first epoch; 0: only at the end.
        threshold: percent of the weights below which a plane is dropped at the intervals.
        ceiling: the most magnitude bits that a layer, by name, may grow to.
        floor: the fewest that dropping leaves it.
        aim: compression that the strength is adapted to reach; None: it is constant.
        evaluate: evaluates the student around a re-quantisation (`top1`); its values enter the `requantize` record.
    """

    needs_labels = True
    compiled: Mapping[str, bool | None] = {"student": False}

    def __init__(
        self, student: nn.Module, sgd: SgdOptions, *, strength: float, interval: int, threshold: float,
        ceiling: Width, floor: Width, evaluate: Evaluate, aim: target.Aim | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.student, self.sgd, self.strength = student, sgd, strength
        self.interval, self.threshold = interval, threshold
        self.ceiling, self.floor, self.evaluate, self.aim = ceiling, floor, evaluate, aim
        self._planes: PlaneSGD | None = None

    def optimizers(self) -> dict[str, Optimizer]:
        """`planes` for planes and scales, `main` for all else, both under the schedule `main`."""
        layers, sgd = bit_layers(self.student), self.sgd
        self._planes = PlaneSGD(list(layers.values()), sgd.lr, sgd.momentum, sgd.weight_decay, self.strength)
        theirs = {id(parameter) for layer in layers.values() for parameter in layer.parameters()}
        rest = [parameter for parameter in self.student.parameters() if id(parameter) not in theirs]
        optimizers: dict[str, Optimizer] = {"planes": self._planes}
        if rest:
            optimizers["main"] = stated_optimizer(rest, sgd)
        for optimizer in optimizers.values():
            optimizer.param_groups[0]["schedule"] = "main"
        self._names = tuple(optimizers)
        return optimizers

    def passes(self, clock: Clock) -> tuple[Pass, ...]:
        """One pass; both optimizers step after it."""
        return (Pass(step=self._names),)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss` = `ce` + strength * `reg`, where `reg` is a constant here: `PlaneSGD` adds its gradient."""
        assert batch.label is not None and self._planes is not None
        logits = self.student(batch.views[0])
        ce = F.cross_entropy(logits, batch.label)
        reg, alpha = self._planes.lasso().to(ce.dtype), self._planes.strength
        parts = {"ce": ce.detach(), "reg": reg, "top1": batch_top1(logits.detach(), batch.label)}
        if self.aim is not None:
            parts["alpha"] = reg.new_tensor(alpha)
        return Out(ce + alpha * reg, parts)

    def reg(self) -> float:
        """The group lasso of the planes as they are, divided by TP."""
        layers = list(bit_layers(self.student).values())
        total = sum(layer.numel(keys) for layer in layers for keys in layer.tensors)
        with torch.no_grad():
            return sum(layer.group_lasso().item() for layer in layers) / total

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Adapt the strength where there is an aim."""
        total = clock.epochs * clock.steps_per_epoch
        if self.aim is None or self._planes is None:
            return
        if (clock.done + 1) % max(total // target.MOMENTS, 1) == 0:
            now = target.compression_now(bit_layers(self.student), self.ceiling, self.floor)
            self._planes.strength = self.aim.strength(now, (clock.done + 1) / total)

    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        """Re-quantise and drop planes where the interval says so."""
        if not self.interval or clock.epoch % self.interval:
            return False
        self._requantize(clock, self.threshold)
        return True

    def end_stage(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> None:
        """The final re-quantisation, which drops empty planes alone, and what is left to an aim."""
        self._requantize(clock, 0.0, last=True)

    def _requantize(self, clock: Clock, threshold: float, last: bool = False) -> None:
        before = self.evaluate(clock, self.student, "before")
        if self._planes is not None:
            self.strength, self._planes = self._planes.strength, None
        requantize_(self.student, self.ceiling)
        prune_(self.student, threshold, self.floor)
        found: dict[str, Any] = {}
        if self.aim is not None:
            found = {"alpha": self.strength, "compression_found": size(self.student).compression}
            if last:
                target.meet_(bit_layers(self.student), self.aim.target, self.floor, self.ceiling)
        after = self.evaluate(clock, self.student, "after")
        self.records.append(
            {
                "event": "requantize",
                **{f"{name}_before": value for name, value in before.items()},
                **after,
                **found,
                "compression": size(self.student).compression,
                "bits": nbit_dict(self.student),
                "ones": ones_per_plane(self.student),
            }
        )


class FineTune(Objective):
    """Training at fixed precision: latents of finetune form, clamped to [-1, 1] after each step.

    Args:
        student: classifier in finetune form.
        sgd: rates and decay.
    """

    needs_labels = True
    compiled: Mapping[str, bool | None] = {"student": False}

    def __init__(self, student: nn.Module, sgd: SgdOptions) -> None:
        super().__init__()
        self.student, self.sgd = student, sgd

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": stated_optimizer(self.student.parameters(), self.sgd)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """Cross-entropy."""
        assert batch.label is not None
        logits = self.student(batch.views[0])
        loss = F.cross_entropy(logits, batch.label)
        return Out(loss, {"top1": batch_top1(logits.detach(), batch.label)})

    @torch.no_grad()
    def after_step(self, clock: Clock, pas: Pass) -> None:
        """Latents stay where their codes are."""
        for layer in bit_layers(self.student).values():
            for keys in layer.tensors:
                layer.latent(keys).clamp_(-1, 1)
