"""What a method and its config decide of an objective: widths, losses, heads by role, the momentum copy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from lowbit.losses.ranks import Ranks
from lowbit.train.protocol import Clock, Pass
from us3l.group_decay import GroupDecay
from us3l.sampling import Sampling, uniform_of

Outputs = tuple[Tensor, ...]  # of each view, (B, D)
Loss = Callable[[Any, Any, Ranks], Tensor]  # of predictions and targets, both `Outputs`, on these ranks


class SubNet(NamedTuple):
    """One pass: its width, its name in the record, whether it has the base loss, whether it is the batch's last."""

    width: float
    name: str
    base: bool
    last: bool


@dataclass(frozen=True)
class Plan:
    """What a method and its config decide.

    Attributes:
        sampling: widths of a step.
        base: loss of the widest pass.
        distillation: loss of narrower ones, the copy being at full width; None: all have the base loss, and targets of
            the copy at their own width.
        weight: of the distillation.
        heads: submodules that make the predictions of the base loss and of the distillation; "": the outputs are.
        momentum: m of the copy; None: there is none.
        moves_per_pass: the copy moves before each pass, not once per batch.
        step_per_batch: the gradients of all widths make one optimizer step.
        decay: group regularization.
    """

    sampling: Sampling
    base: Loss
    distillation: Loss | None
    weight: float = 1.0
    heads: tuple[str, str] = ("", "")
    momentum: float | None = None
    moves_per_pass: bool = False
    step_per_batch: bool = False
    decay: GroupDecay | None = None

    def passes(self, clock: Clock) -> list[Pass]:
        """One for each width of a batch, the widest first; the same on all ranks."""
        widths = self.sampling.widths(clock.epoch, clock.epochs, uniform_of(clock.generator("widths")))
        made = []
        for number, (width, name) in enumerate(zip(widths, self.sampling.names(widths), strict=True)):
            last = number == len(widths) - 1
            net = SubNet(width, name, number == 0 or self.distillation is None, last)
            made.append(Pass(net, ("main",) if last or not self.step_per_batch else ()))
        return made
