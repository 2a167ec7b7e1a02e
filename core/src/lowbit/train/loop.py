"""`fit`: the only training loop there is. It knows the order of calls and nothing else.

Position = (stage, epoch, step, done). Per epoch: `begin_epoch` (step 0), the batches, then probes and, after a stage's
last epoch, `end_stage` (step == steps_per_epoch). A batch is `lowbit.train.engine.Engine.batch`. What a checkpoint
holds is `lowbit.train.state`; an unbroken run and one that was killed and resumed give equal tensors and lines.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.batch import Batch
from lowbit.errors import InputError, Stopped
from lowbit.train.engine import Engine, seed_global
from lowbit.train.position import Position, epochs_before
from lowbit.train.process import broadcast_, check_precision, on_main, stop_agreed
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.record import Record
from lowbit.train.resume import check_resume, facts, report_differences
from lowbit.train.run import Loader, Result, Run
from lowbit.train.signals import stop_requested
from lowbit.train.state import checkpoint_bytes, gather, load_weights, local_meter

__all__ = ["Result", "Run", "check_run", "fit"]

STOP_EVERY = 10  # steps between asking all ranks whether to stop (0.3 ms)

log = logging.getLogger(__name__)


def fit(stages: Sequence[Stage], loader: Loader, run: Run) -> Result:
    """Train every stage, or what is left of it after `run.resume`.

    On several processes all of them call it, and `run.probes` return equal values on all of them.

    Raises:
        InputError: found before the first step wherever it can be; also a full disk, and a loss that became NaN.
        Stopped: a signal was obeyed; the run is saved and can be resumed.
    """
    position = check_run(stages, loader, run)
    if run.resume is not None:
        report_differences(run.resume, stages, loader, run)
    loop = _Loop(stages, loader, run, position)
    try:
        return loop.run_stages()
    finally:
        loop.record.close()


def check_run(stages: Sequence[Stage], loader: Loader, run: Run) -> Position:
    """Everything that can be refused before a folder is written to; `fit` asks it too. Returns where the run starts.

    Raises:
        InputError: fp16 on the CPU, a stage without epochs, a last batch that cannot be divided among processes and
            parts, a checkpoint that this run cannot go on from.
    """
    check_precision(run.accelerator)
    if any(stage.epochs < 1 for stage in stages):
        raise InputError(f"a run of {[stage.epochs for stage in stages]} epochs: give 1 or more")
    if run.accumulate < 1 or loader.last_batch < run.accelerator.num_processes * run.accumulate:
        raise InputError(
            f"the last batch of an epoch has {loader.last_batch} pictures for {run.accelerator.num_processes} "
            f"processes x {run.accumulate} parts (--accumulate), and each part needs one: change the batch size, the "
            "parts or the number of pictures"
        )
    return Position() if run.resume is None else check_resume(run.resume, stages, loader, run)


class _Loop:
    """The state of one call of `fit`."""

    def __init__(self, stages: Sequence[Stage], loader: Loader, run: Run, position: Position) -> None:
        self.stages, self.loader, self.run, self.position = stages, loader, run, position
        self.accelerator, self.device = run.accelerator, run.accelerator.device
        self.rank, self.world = run.accelerator.process_index, run.accelerator.num_processes
        self.steps_per_epoch, self.epochs = len(loader), [stage.epochs for stage in stages]
        self.saved_at: Position | None = None  # of `checkpoint.pth.tar`, as far as this process wrote it
        self.record = Record(run, self.steps_per_epoch * sum(self.epochs), len(stages))
        if self.world > 1:
            for objective in (stage.objective.to(self.device) for stage in stages):
                broadcast_(objective.buffers())
                broadcast_(p for name, p in objective.named_parameters() if objective.is_rebuilt(name))
        self.facts = facts(stages, loader, run)
        self.open_stage(run.resume)

    def open_stage(self, resume: Mapping[str, Any] | None) -> None:
        """Weights, buffers that differ by rank, optimizers, their state, DDP: in this order."""
        self.engine = Engine(self.stages[min(self.position.stage, len(self.stages) - 1)], self.run, self.record.meter)
        if resume is not None:
            load_weights(resume, self.engine.objective, self.run)
            self.record.load(resume, local_meter(resume, self.accelerator))
        if self.finished:  # the last `end_stage` may have replaced what the optimizers knew
            self.engine.objective.to(self.device)
            return
        self.engine.build(None if resume is None else resume["optimizer"])
        if resume is not None and resume["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(resume["scaler"])

    @property
    def finished(self) -> bool:
        return self.position.stage == len(self.stages)

    def reached(self) -> bool:
        """Whether `max_steps` is."""
        return self.run.max_steps is not None and self.position.done >= self.run.max_steps

    def clock(self) -> Clock:
        stage, epoch, step, done = self.position
        epochs = self.epochs[stage]
        return Clock(stage, epoch, epochs, step, self.steps_per_epoch, self.run.seed, self.rank, self.world, done)

    def batches(self, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        """This epoch's batches; later stages go on in the loader's count of epochs."""
        before = sum(self.epochs[: self.position.stage])
        return self.loader.epoch(before + self.position.epoch, start, whole=whole)

    def whole_batches(self) -> Callable[[], Iterable[Batch]]:
        """What hooks get: this epoch's whole batches from the first on, labelled if the objective reads labels."""
        labels = self.engine.objective.needs_labels
        return lambda: ((b if labels else b._replace(label=None)).to(self.device) for b in self.batches(whole=True))

    def run_stages(self) -> Result:
        """All that is left of the run."""
        if self.finished:
            log.info("this run is finished (%d steps): nothing to do", self.position.done)
            return self.result()
        if self.run.resume is not None:
            self.report_start()
        self.record.start(self.position.done)
        while not self.finished:
            if self.position.step == 0 and not self.begin_epoch():
                break
            if not self.train_epoch():
                break
            self.end_epoch()
        if self.saved_at != self.position:
            self.save()
        return self.result()

    def report_start(self) -> None:
        """From which step a resumed run goes on, and how many remain."""
        done, total = self.position.done, self.record.total_steps
        if self.reached():
            text = "stopping at step %d, which --max-steps %d has reached: it counts from the run's start; give more"
            log.warning(text, done, self.run.max_steps)
        else:
            log.info("going on from step %d of %d: %d remain", done, total, total - done)

    def begin_epoch(self) -> bool:
        """The hook before an epoch's first batch; False when `max_steps` is reached."""
        self.obey_stop()
        if self.reached():
            return False
        objective = self.engine.objective
        hooked = type(objective).begin_epoch is not Objective.begin_epoch
        if hooked and self.position.done and self.saved_at != self.position:
            self.save()  # a hook that is stopped half way is discarded: a run goes on from before it
        clock = self.clock()
        objective.train()
        seed_global(clock, "begin_epoch", self.device)
        if objective.begin_epoch(clock, self.whole_batches()):
            self.engine.build()
        self.record.hooks(clock, objective)
        objective.train()
        return True

    def train_epoch(self) -> bool:
        """The rest of an epoch's batches; False when `max_steps` is reached before its end."""
        if self.position.step < self.steps_per_epoch:
            with self.record.timed(), closing(self.batches(self.position.step)) as batches:  # type: ignore[type-var]
                for batch in batches:
                    if self.reached():
                        return False
                    clock = self.clock()
                    self.engine.batch(batch, clock)
                    self.position = self.position._replace(step=clock.step + 1, done=clock.done + 1)
                    done = self.position.done
                    self.record.advance(clock, done, self.pictures())
                    if done % self.run.log_every == 0:
                        self.record.step(clock, done, self.engine.learning_rates(clock))
                    if self.run.save_every and done % self.run.save_every == 0:
                        self.save()
                    if done % STOP_EVERY == 0 if self.world > 1 else stop_requested():
                        self.obey_stop()
        if self.position.step != self.steps_per_epoch:
            raise RuntimeError(f"the loader stopped at batch {self.position.step} of {self.steps_per_epoch}")
        return True

    def end_epoch(self) -> None:
        """Means and probes, `end_stage` after the last epoch, then the next position and its checkpoint.

        Where this epoch has a checkpoint it is written before the probes, too: one that fails does not cost the epoch.
        """
        notes = self.record.notes()  # for a checkpoint of this position: what follows is written again from there
        clock, objective = self.clock(), self.engine.objective
        ends = clock.epoch + 1 == clock.epochs
        changes = ends and type(objective).end_stage is not Objective.end_stage
        due = self.run.save_every is None or (ends and clock.stage + 1 == len(self.stages))
        early = due and bool(self.run.probes) and self.saved_at != self.position
        self.record.epoch(clock, self.engine.learning_rates(clock), self.pictures())
        if early:
            self.save(notes)
        try:
            values = self.probe(clock)
        except Stopped as stop:
            if self.saved_at != self.position:
                self.save(notes)
            raise Stopped(f"{stop}; {self.where_stopped()}") from stop
        better = self.record.improves(values)
        if better and self.run.folder is not None:
            self.write(self.run.folder.best, notes, values)
        if ends:
            if changes and self.saved_at != self.position:
                self.save(notes)  # as before `begin_epoch`
            objective.train()
            seed_global(clock, "end_stage", self.device)
            objective.end_stage(clock, self.whole_batches())
            self.record.hooks(clock, objective)
        self.record.evaluated(clock, values, better)
        at, epoch = (clock.stage + 1, 0) if ends else (clock.stage, clock.epoch + 1)
        self.position = Position(at, epoch, 0, clock.done)
        if ends and not self.finished:
            self.open_stage(None)
        if due:
            found = {} if changes else values
            self.save(figures=found, keep_previous=changes or not early)  # one of this epoch, unless it changed the net

    def probe(self, clock: Clock) -> dict[str, float]:
        """Values of the run's probes for the finished epoch."""
        values: dict[str, float] = {}
        for number, probe in enumerate(self.run.probes):
            seed_global(clock, f"probe {number}", self.device)
            found = probe(clock, self.engine.objective)
            values |= {name: v if isinstance(v, int | float) else float(v) for name, v in found.items()}
        self.record.figures(clock, values)
        return values

    def obey_stop(self) -> None:
        """Save and raise `Stopped` if any process was asked to stop; nobody leaves before the file is written."""
        if not stop_agreed(self.accelerator):
            return
        if self.saved_at != self.position:
            self.save()
        raise Stopped(self.where_stopped())

    def where_stopped(self) -> str:
        """What is left of a run that ends here."""
        step = f"after step {self.position.done}"
        return f"{step}, unsaved" if self.run.folder is None else f"saved {step}; go on with --resume auto"

    def save(
        self, notes: Mapping[str, Any] | None = None, *, figures: Mapping[str, float] = MappingProxyType({}),
        keep_previous: bool = True,
    ) -> None:  # fmt: skip
        """Write `checkpoint.pth.tar`, keeping the one before; a collective. `figures`: probes' of this very net."""
        if self.run.folder is not None:
            self.write(self.run.folder.checkpoint, notes, figures, keep_previous=keep_previous)
        self.saved_at = self.position

    def write(
        self, path: Path, notes: Mapping[str, Any] | None, figures: Mapping[str, float], *, keep_previous: bool = False
    ) -> None:
        state = gather(self.engine, notes or self.record.notes(), self.position, self.run, figures)
        changed = type(self.engine.objective).end_stage is not Objective.end_stage
        if self.finished and changed:  # no run goes on from here
            state["optimizer"] = {}
        state["run"] = dict(self.facts)
        state["epoch"] = epochs_before(self.epochs, self.position, self.steps_per_epoch)
        on_main(self.accelerator, lambda: write_checkpoint(path, state, keep_previous=keep_previous))

    def pictures(self) -> int:
        """Pictures seen since the run began."""
        epochs, rest = divmod(self.position.done, self.steps_per_epoch)
        per_epoch = (self.steps_per_epoch - 1) * self.loader.global_batch + self.loader.last_batch
        return epochs * per_epoch + rest * self.loader.global_batch

    def result(self) -> Result:
        epochs = epochs_before(self.epochs, self.position, self.steps_per_epoch)
        record = self.record
        return Result(
            finished=self.finished,
            done=self.position.done,
            epochs=epochs,
            train=record.last["train"],
            eval=record.last["eval"],
            best=record.best,
            seconds=record.seconds,
            images_per_second=self.pictures() / max(record.seconds, 1e-9),
            checkpoint_bytes=checkpoint_bytes(self.engine),
        )
