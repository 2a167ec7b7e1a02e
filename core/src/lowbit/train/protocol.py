"""The protocol between a method and the training loop: `Objective`, `Pass`, `Out`, `Stage`, `Clock`.

A step of these papers is not always one forward and one optimizer step: a slimmable net steps once per width with the
teacher's output carried over; bit planes are replaced at re-quantisation and clamped after a step; learned quantizers
have an optimizer of their own; momentum copies move once per batch; some distillations have two stages.
The loop (`lowbit.train.loop.fit`) knows the order of the calls below and nothing else. Of one batch:

    before_batch
    for each of passes:  forward and backward of every part;  before_step, the optimizers, after_step (if it steps)
    after_batch
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch


class Clock(NamedTuple):
    """The only time there is: passed in, never stored. Every draw is a function of it, so no random state is saved.

    Attributes:
        stage, epoch, step: 0-based; `step` counts batches inside the epoch.
        epochs, steps_per_epoch: of this stage.
        done: batches since the first stage began (the counter of `--max-steps` and of the metrics).
        micro: part of the batch under accumulation.
    """

    stage: int
    epoch: int
    epochs: int
    step: int
    steps_per_epoch: int
    seed: int
    rank: int = 0
    world: int = 1
    done: int = 0
    micro: int = 0

    def key(self, stream: str, per_rank: bool = False) -> int:
        """A 63-bit number that is a function of (seed, stream, stage, epoch, step, micro[, rank]) alone."""
        place = (self.seed, stream, self.stage, self.epoch, self.step, self.micro, self.rank if per_rank else -1)
        digest = hashlib.blake2b(repr(place).encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1

    def generator(self, stream: str, per_rank: bool = False) -> torch.Generator:
        """A CPU generator for one draw; the same on every rank unless `per_rank`. CPU generators use 32 bits of it."""
        return torch.Generator().manual_seed(self.key(stream, per_rank) & 0xFFFFFFFF)


class Pass(NamedTuple):
    """One forward and its backward inside a batch.

    Attributes:
        variant: what the pass runs (a width, a pair of bits); None for the plain net.
        step: names of the optimizers stepped after it; () leaves the gradients to the next pass.
    """

    variant: Any = None
    step: tuple[str, ...] = ("main",)


class Out(NamedTuple):
    """What one forward returns.

    Attributes:
        loss: scalar.
        parts: scalars to log.
        carry: what the next pass over the same part of the batch is given (detached tensors), and `after_batch` of the
            last pass. Nothing is kept from earlier passes: each pass returns what any later one still needs.
    """

    loss: Tensor
    parts: Mapping[str, Tensor] = {}
    carry: Any = None


class Objective(nn.Module):
    """A paper: owns student, teacher, momentum copy and queue. The hooks do nothing by default and hold no logic.

    Attributes:
        frozen: names of submodules that `train()` keeps in eval mode (teachers, momentum copies).
        rebuilt: names of submodules that checkpoints leave out, since the command makes them again (a teacher read from
            a file, the same on all ranks, without gradients). `train()` keeps them in eval mode, too. A resumed run
            must have the same weights in them: the checkpoint has their digest.
        needs_labels: False leaves `batch.label` None, so that labels are provably unread.
        n_views: augmented views per picture.
        compiled: names of submodules that `--compile` compiles in place (the backbone, never the objective), and
            torch's `dynamic`: False makes a graph for each batch shape, so that a resumed run equals an unbroken one;
            None suits shapes that vary by pass, but then the shape that came first decides about rounding.
        records: lines for `metrics.jsonl`, each with its `event`, that hooks append; the loop writes them after
            `begin_epoch` and `end_stage`, with `step`, `epoch` and `stage`, and empties the list. Equal on all ranks.
    """

    frozen: Sequence[str] = ()
    rebuilt: Sequence[str] = ()
    needs_labels: bool = False
    n_views: int = 1
    compiled: Mapping[str, bool | None] = {}

    def __init__(self) -> None:
        super().__init__()
        self.records: list[dict[str, Any]] = []

    def train(self, mode: bool = True) -> "Objective":
        """Set training mode, except for the `frozen` and `rebuilt` submodules."""
        super().train(mode)
        for name in (*self.frozen, *self.rebuilt):
            self.get_submodule(name).eval()
        return self

    def is_rebuilt(self, name: str) -> bool:
        """Whether a parameter or buffer of this name belongs to a `rebuilt` submodule."""
        return name.startswith(tuple(f"{submodule}." for submodule in self.rebuilt))

    def optimizers(self) -> dict[str, Optimizer]:
        """Build the optimizers by name; called after `load_state_dict`, and again after a rebuild."""
        raise NotImplementedError

    def passes(self, clock: Clock) -> Sequence[Pass]:
        """The plan of this batch; must be equal on all ranks."""
        return (Pass(),)

    def before_batch(self, clock: Clock) -> None:
        """Once per batch, before its first pass: momentum copies move."""

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """One forward; the loop calls its backward. The one entry that DDP and autocast see."""
        raise NotImplementedError

    def before_step(self, clock: Clock, pas: Pass) -> None:
        """Before the optimizers of a pass step: what is added to their gradients (a group regularisation).

        Gradients are complete (all parts of the batch, all ranks), unscaled and not yet clipped; those of parameters
        that the pass did not use may be None. Change none of an optimizer that does not step. Equal on all ranks.
        """

    def after_step(self, clock: Clock, pas: Pass) -> None:
        """After the optimizers of a pass stepped: clamps, a copy that moves per pass."""

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        """Once per batch: momentum copy, enqueue. `carries` holds the last pass's carry of each accumulated part."""

    def begin_epoch(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> bool:
        """Before an epoch's first batch: re-quantise, traces, intervals set from data.

        True = parameters were replaced: optimizers and DDP are made again. Its work must be discardable: it is repeated
        when a run resumes at the epoch's start, and not when it resumes inside the epoch.

        Args:
            clock: of the epoch's start.
            batches: this epoch's, from the first on. Each is whole and the same on every rank, so what is computed from
                it is already that of all ranks: nothing is to be reduced over them. Batch norm that is not
                synchronised has each rank's own statistics: a hook that forwards in evaluation mode does so under
                `lowbit.train.process.first_ones_buffers`, or its ranks part.
        """
        return False

    def end_stage(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> None:
        """Once after a stage's last epoch, before its last save; `batches` as in `begin_epoch`, of the last epoch."""


class Stage(NamedTuple):
    """A part of a run with its own objective and schedule.

    Attributes:
        lr: learning rate by time; the key is a parameter group's `schedule` entry, else its optimizer's name.
    """

    objective: Objective
    epochs: int
    lr: Mapping[str, Callable[[Clock], float]]
