"""S2-BNN: what one step computes.

Shen, Liu, Qin, Huang, Cheng, Savvides, "S2-BNN: Bridging the Gap Between Self-Supervised Real and 1-bit Neural Networks
via Guided Distribution Calibration", CVPR 2021 (arXiv 2102.08946). One view is shown to the student and to a frozen,
real-valued, self-supervised teacher, whose output distribution it learns:

    L = -mean over the batch of sum_c p_c log q_c,    p = softmax(t / T), q = softmax(s / T),

where s and t are embeddings of unit length and c counts their channels; in SEED's form (`over="queue"`) their
similarities to a queue of earlier t. The contrastive loss is MoCo v2's; the two are added, or stand alone.

Deviations from the authors' program, which has the same losses: KL and the teacher's entropy, the least value of L, are
logged apart, since L moves by little between them; the distillation alone makes no key encoder and no queue, and is
shown one view; a student whose embedding is narrower or wider than the teacher's gets a linear layer to its width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.evaluate.collapse import unit_std
from lowbit.losses.contrastive import info_nce, queue_logits
from lowbit.losses.distillation import similarity_distillation, soft_cross_entropy
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import Ranks, ranks_of, shuffled_keys
from lowbit.models.momentum import momentum_copy, update_momentum_
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import batch_top1

Parts = dict[str, Tensor]


class S2bnn(Objective):
    """A student that learns by contrast (`keys`), from a teacher, or both.

    Args:
        encoder_q: the student, (B, C, H, W) -> (B, D).
        optimize: builds the optimizer of this objective's trained parameters.
        temperature: T > 0.
        keys: the queue of the contrastive loss.
        momentum: m of its key encoder.
        teacher: (B, C, H, W) -> (B, D'); frozen here, in evaluation mode, and not in checkpoints.
        projector: (B, D) -> (B, D'), trained, between the student and the distillation; None: D = D'.
        teacher_temperature: T of the teacher; None: `temperature`.
        teacher_keys: the queue of the teacher's outputs, for SEED's form.
        kl: the distillation's loss is KL(p, q): L without the teacher's entropy, with the same gradient.
    """

    compiled = {"encoder_q": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, encoder_q: nn.Module, optimize: Callable[[nn.Module], Optimizer], *, temperature: float,
        keys: KeyQueue | None = None, momentum: float = 0.999, teacher: nn.Module | None = None,
        projector: nn.Module | None = None, teacher_temperature: float | None = None,
        teacher_keys: KeyQueue | None = None, kl: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder_q, self._optimize, self.momentum, self.kl = encoder_q, optimize, momentum, kl
        self.temperatures = temperature, temperature if teacher_temperature is None else teacher_temperature
        self.keys, self.encoder_k = keys, None if keys is None else momentum_copy(encoder_q)
        self.teacher = None if teacher is None else teacher.requires_grad_(False)
        self.projector, self.teacher_keys = projector, teacher_keys
        self.n_views, self.rebuilt = 1 if keys is None else 2, () if teacher is None else ("teacher",)

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimize(self)}

    def before_batch(self, clock: Clock) -> None:
        """The key encoder moves before its outputs are taken: its latent weights, which are then binarized."""
        if self.encoder_k is not None:
            update_momentum_(self.encoder_k, self.encoder_q, self.momentum)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss`, its parts, and `z_std` of the student; keys and the teacher's outputs are carried to the queues."""
        layout = ranks_of(len(batch.index), batch.share)
        z = self.encoder_q(batch.views[0])
        losses, parts, key, t = [], {"z_std": unit_std(z.detach())}, None, None
        if self.encoder_k is not None:
            loss, key, more = self._contrast(z, batch.views[1], layout, clock)
            losses, parts = [loss], parts | more
        if self.teacher is not None:
            loss, t, more = self._distil(z, batch.views[0])
            losses, parts = [*losses, loss], parts | more
        return Out(torch.stack(losses).sum(), parts, (key, t, layout))

    def _contrast(self, z: Tensor, x: Tensor, layout: Ranks, clock: Clock) -> tuple[Tensor, Tensor, Parts]:
        """The loss of (K + 1)-way classification, the keys, what is logged."""
        assert self.encoder_k is not None and self.keys is not None
        key = F.normalize(shuffled_keys(self.encoder_k, x, layout, clock.generator("shuffle")), dim=1)
        logits = queue_logits(F.normalize(z, dim=1), key, self.keys.queue, self.temperatures[0])
        loss, found = info_nce(logits), logits.detach()
        top5 = ((found > found[:, :1]).sum(1) < 5).to(loss.dtype).mean() * 100
        return loss, key, {"loss_cl": loss.detach(), "top1": batch_top1(found, 0), "top5": top5}

    def _distil(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Parts]:
        """The loss of the teacher's distribution, its embeddings, what is logged."""
        assert self.teacher is not None
        with torch.no_grad():
            t = F.normalize(self.teacher(x), dim=1)
        s = F.normalize(z if self.projector is None else self.projector(z), dim=1)
        if self.teacher_keys is None:
            loss, entropy = soft_cross_entropy(s / self.temperatures[0], t / self.temperatures[1])
        else:
            loss, entropy = similarity_distillation(s, t, self.teacher_keys.queue, *self.temperatures)
        kl = loss - entropy
        parts = {"loss_kd": loss.detach(), "kl": kl.detach(), "teacher_entropy": entropy}
        return kl if self.kl else loss, t, parts

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Enqueue the keys and the teacher's outputs of the whole batch, of all processes."""
        for key, t, layout in carries:
            if self.keys is not None:
                self.keys.enqueue_(key, layout)
            if self.teacher_keys is not None:
                self.teacher_keys.enqueue_(t, layout)
