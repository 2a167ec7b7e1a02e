"""US3L: one self-supervised net that runs at any width.

Cao, Sun, Zhou, "Three Guidelines You Should Know for Universally Slimmable Self-Supervised Learning", CVPR 2023 (arXiv
2303.06870). A batch is shown to the encoder once per width, the widest first, with an optimizer step after each:

    widest:    L = base(g(f), t),              t = k(x), of the momentum copy k at full width, or f itself, stopped
    narrower:  L = distillation(h(f_w), t),    with a head h of its own, + a loss on feature maps

so that sub-networks learn from one target that is stable in time. Methods differ by data: heads by role (g, h), losses,
whether there is a momentum copy; MoCo asks with view 1 for the key of view 2 among a queue of keys, at each width. With
a frozen teacher in the copy's place it is SEED (Fang et al., ICLR 2021, arXiv 2101.04731), of one view that both nets
are shown, and the authors' two plainer ways.

Deviations from the authors' program: `Plan.step_per_batch` (as Yu and Huang, ICCV 2019); `Plan.moves_per_pass` (their
MOMENTUM_UPDATE) does not run the copy again, whose outputs they drop; without distillation each width has its own
target, from the copy at that width; MoCo at several widths is ours; SEED takes one view (theirs: two), as its paper.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.evaluate.collapse import unit_std
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import Ranks, ranks_of, shuffled_keys
from lowbit.models.captured import Captured, run_captured
from lowbit.models.momentum import momentum_copy, update_momentum_
from lowbit.slim.layers import at_width
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.schedule import Schedule
from us3l.group_decay import GroupDecay
from us3l.losses import FeatureDistillation, Loss
from us3l.sampling import Sampling, Uniform

Outputs = tuple[Tensor, ...]  # of each view, (B, D)


def uniform_of(generator: torch.Generator) -> Uniform:
    """Draws of a CPU generator, such as `Clock.generator("widths")`."""
    return lambda low, high: low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


class SubNet(NamedTuple):
    """One pass: its width, its name in the record, whether it is the batch's widest, has the base loss, is the last."""

    width: float
    name: str
    widest: bool
    base: bool
    last: bool


@dataclass(frozen=True)
class Plan:
    """What a method and its config decide."""

    sampling: Sampling  # widths of a step
    base: Loss  # of the widest pass
    distillation: Loss | None  # of narrower ones, the copy being at full width; None: all have `base`, the copy theirs
    weight: float = 1.0  # of the distillation
    heads: tuple[str, str] = ("", "")  # submodules that predict in the widest pass and in narrower ones; "": none
    momentum: Schedule | None = None  # m of the copy; None: there is none
    moves_per_pass: bool = False  # the copy moves before each pass, not once per batch
    step_per_batch: bool = False  # the gradients of all widths make one optimizer step
    decay: GroupDecay | None = None

    def passes(self, clock: Clock) -> list[Pass]:
        """One for each width of a batch, the widest first; the same on all ranks."""
        widths = self.sampling.widths(clock.epoch, clock.epochs, uniform_of(clock.generator("widths")))
        nets = [
            SubNet(width, name, number == 0, number == 0 or self.distillation is None, number == len(widths) - 1)
            for number, (width, name) in enumerate(zip(widths, self.sampling.names(widths), strict=True))
        ]
        return [Pass(net, ("main",) if net.last or not self.step_per_batch else ()) for net in nets]


class UniversallySlimmable(Objective):
    """Every method at several widths, or at one. Logs the loss of each width and `z_std` of its outputs.

    Args:
        encoder_q: slimmable, (B, C, H, W) -> (B, D); or any net, at width 1 alone.
        plan: of the method.
        optimize: builds the optimizer of this objective's trained parameters.
        heads: those that the plan names.
        features: distillation of feature maps, in narrower passes.
        keys: MoCo's queue, or SEED's.
        teacher: frozen here, in evaluation mode, and not in checkpoints; where it has a queue, it sees the same view.
    """

    compiled = {"encoder_q": False}  # noqa: RUF012 (read-only)

    def __init__(
        self, encoder_q: nn.Module, plan: Plan, optimize: Callable[[nn.Module], Optimizer], *,
        heads: Mapping[str, nn.Module], features: FeatureDistillation | None = None, keys: KeyQueue | None = None,
        teacher: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.encoder_q, self.plan, self._optimize = encoder_q, plan, optimize
        for name, head in heads.items():
            self.add_module(name, head)
        if plan.momentum is not None:
            self.encoder_k = momentum_copy(encoder_q)
        elif teacher is not None:
            self.encoder_k, self.rebuilt = teacher.requires_grad_(False), ("encoder_k",)
        self.proj_conv, self.keys, self._features = features, keys, () if features is None else features.names
        self.n_views = 2 if keys is None or teacher is None else 1

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": self._optimize(self)}

    def passes(self, clock: Clock) -> Sequence[Pass]:
        """One for each width of this batch, the widest first."""
        return self.plan.passes(clock)

    def before_batch(self, clock: Clock) -> None:
        """The copy moves before its outputs are taken and before this batch's first step."""
        if self.plan.momentum is not None:
            update_momentum_(self.encoder_k, self.encoder_q, self.plan.momentum(clock))

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """`loss`; the targets are carried from the widest pass to the others, and to the queue."""
        net, plan, layout = pas.variant, self.plan, ranks_of(len(batch.index), batch.share)
        with at_width(self.encoder_q, net.width):
            views = batch.views if self.keys is None else batch.views[:1]
            f, maps = run_captured(self.encoder_q, self._features, views)
        if net.base:
            carry = (*self._targets(batch, clock, layout, net.width, f, maps), layout)
        targets, target_maps, _ = carry
        head = plan.heads[0 if net.widest else 1]
        p = tuple(map(self.get_submodule(head), f)) if head else f
        if net.base or plan.distillation is None:
            loss = plan.base(p, targets, layout)
        else:
            loss = plan.weight * plan.distillation(p, targets, layout)
            if self.proj_conv is not None:
                loss = loss + self.proj_conv(maps, target_maps)
        end = f"_{net.name}" if net.name else ""
        parts = {f"z_std{'' if net.base else end}": unit_std(f[0].detach())}
        return Out(loss, {**parts, f"loss{end}": loss.detach()} if end else parts, carry)

    @torch.no_grad()
    def _targets(
        self, batch: Batch, clock: Clock, layout: Ranks, width: float, f: Outputs, maps: Captured
    ) -> tuple[Outputs, Captured]:
        """Outputs and maps that a pass at this width, with these own ones, is compared with."""
        if self.plan.momentum is None and not self.rebuilt:
            return tuple(z.detach() for z in f), {name: [x.detach() for x in pair] for name, pair in maps.items()}
        full = 1.0 if self.plan.distillation or self.rebuilt else width
        with at_width(self.encoder_k, full):
            if self.keys is None or self.rebuilt:
                return run_captured(self.encoder_k, self._features, batch.views)
            return (shuffled_keys(self.encoder_k, batch.views[1], layout, clock.generator("shuffle")),), {}

    def before_step(self, clock: Clock, pas: Pass) -> None:
        """Group regularization."""
        if self.plan.decay is not None:
            self.plan.decay.add_(self, pas.variant.width, clock)

    def after_step(self, clock: Clock, pas: Pass) -> None:
        """The copy moves before each further pass where the plan says so."""
        if self.plan.moves_per_pass and not pas.variant.last:
            self.before_batch(clock)

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Enqueue the keys of the whole batch, of all processes."""
        if self.keys is not None:
            for (key,), _, layout in carries:
                self.keys.enqueue_(F.normalize(key, dim=1), layout)
