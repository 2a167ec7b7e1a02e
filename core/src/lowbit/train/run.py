"""What a command tells the loop (`Run`) and what it gets back (`Result`)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from accelerate import Accelerator

from lowbit.data.batch import Batch
from lowbit.train.folder import RunFolder
from lowbit.train.protocol import Clock, Objective

Probe = Callable[[Clock, Objective], Mapping[str, float]]


class Loader(Protocol):
    """What the loop asks of a loader (`lowbit.data.loader.Loader`)."""

    global_batch: int

    @property
    def last_batch(self) -> int:
        """Pictures of the smallest global batch of an epoch."""

    def __len__(self) -> int:
        """Steps per epoch."""

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of one epoch from the batch number `start` on, a function of (seed, epoch).

        This process's part of each batch (`Batch.share`), or with `whole` all of it, the same on every process.
        """


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything about a run that is neither a paper's nor the data's.

    Attributes:
        accelerator: devices, processes, autocast, scaler, trackers (`lowbit.train.process.make_accelerator`).
        folder: where files go; None writes nothing. Other processes than the first never write to it.
        seed: of every draw.
        max_steps: stop and save after that many batches since the run's start; schedules stay those of the full run.
        save_every: steps between checkpoints; None: an epoch.
        accumulate: parts that each batch is split into; all parts of a pass run before its optimizer step.
        clip_grad: largest norm of the gradients of the optimizers that step together.
        compile: compile the objective's `compiled` submodules in place.
        log_every: steps between `step` lines of metrics.
        resume: a checkpoint's content (`read_checkpoint`, `newest_good`) to go on from.
        probes: called on all processes after each epoch, with the finished epoch's clock (`step == steps_per_epoch`);
            what they return makes the `eval` line and chooses the best epoch, so it must be equal on all processes
            (reduce it as `lowbit.evaluate.classify` does). A probe that is not due returns {}, on all of them.
        options: of the training (rates, decay, chosen pictures); a run is resumed with the same.
        header: entries of every checkpoint: `format`, `package`, `arch`, ...
        extra: the method's own entries, asked for at each save with the probes' figures of this very net.
        prefixes: beginnings of `state_dict` keys in the objective -> in the file; the longest that fits is taken.
        best: a value of the `eval` line; `model_best.pth.tar` is kept where it is highest.
    """

    accelerator: Accelerator
    folder: RunFolder | None = None
    seed: int = 0
    max_steps: int | None = None
    save_every: int | None = None
    accumulate: int = 1
    clip_grad: float | None = None
    compile: bool = False
    log_every: int = 50
    resume: Mapping[str, Any] | None = None
    probes: Sequence[Probe] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    header: Mapping[str, Any] = field(default_factory=dict)
    extra: Callable[[Objective, Mapping[str, float]], Mapping[str, Any]] | None = None
    prefixes: Mapping[str, str] = field(default_factory=dict)
    best: str | None = None


class Result(NamedTuple):
    """Where a run stands after `fit`.

    Attributes:
        finished: every stage is over; False after `max_steps`.
        done: batches since the first stage began. epochs: epochs that are over, of all stages.
        train: the last epoch's means (`loss` and the objective's parts). eval: the last probes' values.
        best: the line of metrics at which `model_best.pth.tar` was written.
        seconds: time spent on batches, of all parts of a resumed run. images_per_second: of all processes, likewise.
        checkpoint_bytes: of the tensors of a checkpoint of a run under way.
    """

    finished: bool
    done: int
    epochs: int
    train: Mapping[str, float]
    eval: Mapping[str, float]
    best: Mapping[str, Any] | None
    seconds: float
    images_per_second: float
    checkpoint_bytes: int = 0
