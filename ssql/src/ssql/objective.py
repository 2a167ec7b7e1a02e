"""SSQL and the self-supervised methods it is laid on: what one step computes.

Cao, Sun, Huang, Wu, Zhou, "Synergistic Self-supervised and Quantization Learning", ECCV 2022 (arXiv 2207.05432). A step
of SSQL: forward both views in float, watching the ranges of activations; draw one pair of bits for the whole net;
forward both views again, quantized with those ranges; then

    L = (D(p, z) + D(q, z)) / 2,    p, q: float and quantized predictions, z: the float targets, stopped,

where D is the loss of the method underneath (SimSiam, BYOL, MoCo, SimCLR). Weights and batch norm are one set; the
targets are always float, the predictor too.

Deviations from the authors' program: ranges are those of all processes unless `sync` is off; bits come from the clock,
so that all processes draw the same whatever else draws, and before the float pass, since one of the observers needs
them; SSQL on SimCLR is ours (the authors have none).
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.evaluate.collapse import unit_std
from lowbit.losses.contrastive import crossed_nt_xent, info_nce, nt_xent, queue_logits
from lowbit.losses.cosine import SiameseLoss, cosine_loss
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import ranks_of, shuffled_keys
from lowbit.models.momentum import momentum_copy, update_momentum_
from lowbit.quant.bitwidths import in_mode, set_bits_
from lowbit.quant.calibrate import reset_ranges_, sync_ranges_
from lowbit.train.bn_statistics import fixed_statistics
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import batch_top1
from ssql.bit_policy import A_RANGE, W_RANGE, draw_bits

Optimize = Callable[[nn.Module], Optimizer]


@dataclass(frozen=True)
class Drawing:
    """How the quantized branch is drawn.

    Attributes:
        w_range: weight bits, the upper end excluded.
        a_range: activation bits, likewise.
        equal: activations take the weights' number, drawn from `w_range`.
        sync: ranges of activations are those of all processes.
        shared_norm: batch norm's running statistics follow float and quantized passes alike, as in the authors'
            program; else the float ones alone (a quantized net's are then re-estimated where it is evaluated).
    """

    w_range: tuple[int, int] = W_RANGE
    a_range: tuple[int, int] = A_RANGE
    equal: bool = False
    sync: bool = True
    shared_norm: bool = True


class SelfSupervised(Objective):
    """What the methods share: an encoder whose classifier is the projector, and the quantized branch.

    All log `z_std` of their float outputs (RSSQL of its targets): 1/sqrt(dim) at best, 0 collapsed.

    Args:
        encoder_q: (B, C, H, W) -> (B, dim); wrapped by `quantize_uniform_` where `drawing` is given.
        optimize: builds the optimizer of this objective's trained parameters.
        drawing: SSQL's branch; None: the method without it.
    """

    n_views = 2
    compiled = {"encoder_q": False}  # noqa: RUF012 (read-only)

    def __init__(self, encoder_q: nn.Module, optimize: Optimize, drawing: Drawing | None = None) -> None:
        super().__init__()
        self.encoder_q, self._optimize, self.drawing = encoder_q, optimize, drawing

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimize(self)}

    @torch.no_grad()
    def draw_(self, clock: Clock) -> dict[str, Tensor]:
        """Set the bits of this step; returns them as parts of the record. Nothing without a quantized branch."""
        if self.drawing is None:
            return {}
        w, a = draw_bits(clock.generator("bits"), self.drawing.w_range, self.drawing.a_range)
        a = w if self.drawing.equal else a
        set_bits_(self.encoder_q, w, a)
        return {"w_bits": w.float(), "a_bits": a.float()}

    def floats(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Float outputs of the encoder; with a quantized branch the ranges of this step are observed on the way."""
        if self.drawing is None:
            return tuple(self.encoder_q(x) for x in views)
        reset_ranges_(self.encoder_q)
        with in_mode(self.encoder_q, "observe"):
            outputs = tuple(self.encoder_q(x) for x in views)
        if self.drawing.sync:
            sync_ranges_(self.encoder_q)
        return outputs

    def quantized(self, *views: Tensor) -> tuple[Tensor, ...]:
        """Outputs at the bits of `draw_`, over the ranges of `floats`."""
        assert self.drawing is not None
        statistics = nullcontext() if self.drawing.shared_norm else fixed_statistics(self.encoder_q)
        with in_mode(self.encoder_q, "quantized"), statistics:
            return tuple(self.encoder_q(x) for x in views)


class Siamese(SelfSupervised):
    """SimSiam, BYOL (with a momentum encoder), and SSQL on them.

    Args:
        predictor: (B, dim) -> (B, dim), never quantized.
        loss: D of predictions and targets, both of two views.
        momentum: m of the target encoder (BYOL); None: the targets are the encoder's own outputs (SimSiam).
    """

    def __init__(
        self,
        encoder_q: nn.Module,
        predictor: nn.Module,
        optimize: Optimize,
        drawing: Drawing | None = None,
        *,
        loss: SiameseLoss = cosine_loss,
        momentum: float | None = None,
    ) -> None:
        super().__init__(encoder_q, optimize, drawing)
        self.predictor, self.loss, self.momentum = predictor, loss, momentum
        if momentum is not None:
            self.encoder_k = momentum_copy(encoder_q)

    def before_batch(self, clock: Clock) -> None:
        """The momentum encoder moves before its outputs are taken, as in the authors' program."""
        if self.momentum is not None:
            update_momentum_(self.encoder_k, self.encoder_q, self.momentum)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss`; with a quantized branch also `float`, `quantized` and the bits."""
        x1, x2 = batch.views
        bits = self.draw_(clock)
        z1, z2 = self.floats(x1, x2)
        p = self.predictor(z1), self.predictor(z2)
        if self.momentum is not None:
            with torch.no_grad():
                z1, z2 = self.encoder_k(x1), self.encoder_k(x2)
        z = z1.detach(), z2.detach()
        loss = self.loss(p, z)
        if self.drawing is None:
            return Out(loss, {"z_std": unit_std(z1.detach())})
        q1, q2 = self.quantized(x1, x2)
        quantized = self.loss((self.predictor(q1), self.predictor(q2)), z)
        parts = {"float": loss.detach(), "quantized": quantized.detach(), **bits, "z_std": unit_std(z1.detach())}
        return Out((loss + quantized) / 2, parts)


class Reversed(Siamese):
    """RSSQL, the authors' ablation: float predictions against quantized targets (theirs: at equal bits, 4 to 16)."""

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss` and the bits."""
        x1, x2 = batch.views
        bits = self.draw_(clock)
        p1, p2 = (self.predictor(z) for z in self.floats(x1, x2))
        with torch.no_grad():
            z1, z2 = self.quantized(x1, x2)
        return Out(self.loss((p1, p2), (z1, z2)), {**bits, "z_std": unit_std(z1.detach())})


class Contrastive(SelfSupervised):
    """SimCLR, and SSQL on it: half NT-Xent of the float outputs, half NT-Xent of quantized ones and stopped floats.

    Args:
        temperature: T > 0.
        gathered: negatives of all processes; else of each process by itself, as the authors have it.
    """

    def __init__(
        self,
        encoder_q: nn.Module,
        optimize: Optimize,
        drawing: Drawing | None = None,
        *,
        temperature: float,
        gathered: bool = False,
    ) -> None:
        super().__init__(encoder_q, optimize, drawing)
        self.temperature, self.gathered = temperature, gathered

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss`; with a quantized branch also `float`, `quantized` and the bits."""
        layout = ranks_of(len(batch.index), batch.share) if self.gathered else None
        bits = self.draw_(clock)
        p1, p2 = self.floats(*batch.views)
        loss = nt_xent(p1, p2, self.temperature, layout)
        if self.drawing is None:
            return Out(loss, {"z_std": unit_std(p1.detach())})
        q1, q2 = self.quantized(*batch.views)
        quantized = crossed_nt_xent((q1, q2), (p1, p2), self.temperature, layout)
        parts = {"float": loss.detach(), "quantized": quantized.detach(), **bits, "z_std": unit_std(p1.detach())}
        return Out((loss + quantized) / 2, parts)


class MomentumContrast(SelfSupervised):
    """MoCo v2: view 1 asks, view 2 is the key, a queue holds the negatives; SSQL asks in float and quantized.

    Args:
        dim: units of the encoder's output.
        length: keys in the queue.
        temperature: T > 0.
        momentum: m of the key encoder.
        generator: of the queue's first keys.
    """

    def __init__(
        self,
        encoder_q: nn.Module,
        optimize: Optimize,
        drawing: Drawing | None = None,
        *,
        dim: int,
        length: int,
        temperature: float,
        momentum: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__(encoder_q, optimize, drawing)
        self.temperature, self.momentum = temperature, momentum
        self.encoder_k = momentum_copy(encoder_q)
        self.keys = KeyQueue(dim, length, generator)

    def before_batch(self, clock: Clock) -> None:
        """The key encoder moves before its outputs are taken."""
        update_momentum_(self.encoder_k, self.encoder_q, self.momentum)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss` and `top1` of the positive; the keys are carried to `after_batch`."""
        x1, x2 = batch.views
        bits = self.draw_(clock)
        (asked,) = self.floats(x1)
        layout = ranks_of(len(x2), batch.share)
        key = F.normalize(shuffled_keys(self.encoder_k, x2, layout, clock.generator("shuffle")), dim=1)
        logits = self._logits(asked, key)
        loss = info_nce(logits)
        parts = {"top1": batch_top1(logits, 0), "z_std": unit_std(asked.detach())}
        if self.drawing is not None:
            (q,) = self.quantized(x1)
            quantized = info_nce(self._logits(q, key))
            parts |= {"float": loss.detach(), "quantized": quantized.detach(), **bits}
            loss = (quantized + loss) / 2
        return Out(loss, parts, (key, layout))

    def _logits(self, asked: Tensor, key: Tensor) -> Tensor:
        return queue_logits(F.normalize(asked, dim=1), key, self.keys.queue, self.temperature)

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Enqueue the keys of the whole batch, of all processes."""
        for key, layout in carries:
            self.keys.enqueue_(key, layout)
