"""What `fit` knows about a run besides its position: meters, lines of metrics, the best epoch, the time spent."""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lowbit.errors import InputError
from lowbit.metrics import read_metrics
from lowbit.train import console
from lowbit.train.log import Meter, Reporter
from lowbit.train.progress import Progress
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Run


class Record:
    """Makes the lines of metrics and what a checkpoint has to remember of them (`notes`).

    Attributes:
        last: means of the last epoch (`train`) and values of the last probes (`eval`).
        best: where `run.best` was highest.
    """

    def __init__(self, run: Run, total_steps: int, stages: int) -> None:
        self.run = run
        self.meter = Meter(run.accelerator.device)
        metrics = None if run.folder is None else run.folder.metrics
        self.total_steps = min(total_steps, run.max_steps or total_steps)
        self.reporter = Reporter(run.accelerator, metrics)
        self.progress = Progress(self.total_steps, stages, run.best) if run.accelerator.is_main_process else None
        self.last: dict[str, dict[str, float]] = {"train": {}, "eval": {}}
        self.best: dict[str, Any] | None = None
        self._spent, self._pictures = 0.0, 0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        """Time spent on batches (and on saving between them), of all parts of a resumed run."""
        return self._spent + (0.0 if self._since is None else time.perf_counter() - self._since)

    @property
    def rate(self) -> float:
        """Pictures per second of all ranks, since the run began."""
        return self._pictures / max(self.seconds, 1e-9)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside the block."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._spent, self._since = self.seconds, None

    def notes(self) -> dict[str, Any]:
        """What a checkpoint remembers: lines written, meters, last and best values, seconds."""
        return {
            "lines": self.reporter.file.lines,
            "meter": self.meter.state(),
            "last": {kind: dict(values) for kind, values in self.last.items()},
            "best": self.best,
            "seconds": self.seconds,
        }

    def load(self, state: Mapping[str, Any], meter: Mapping[str, Any]) -> None:
        """Put back `notes`, with this rank's meter."""
        self.meter.load(meter)
        self.last, self.best, self._spent = dict(state["last"]), state["best"], state["seconds"]
        self.reporter.file.lines = state["lines"]

    def start(self, done: int) -> None:
        """Cut the metrics back to what the checkpoint knew."""
        self.reporter.file.cut(self.reporter.file.lines)
        if self.progress is not None:
            lines = [] if self.run.folder is None else read_metrics(self.run.folder.metrics)
            self.progress.start(done, (line for line in lines if line.get("event") == "eval"))

    def advance(self, clock: Clock, done: int, pictures: int) -> None:
        """One batch more: steps and pictures since the run began."""
        self._pictures = pictures
        if self.progress is not None:
            self.progress.draw(clock, done, self.rate, self._loss)

    def _loss(self) -> float | None:
        return self.meter.latest("loss")

    def line(self, event: str, clock: Clock, values: Mapping[str, Any], done: int | None = None) -> None:
        """Write one line: what happened, when, and values."""
        step = clock.done if done is None else done
        self.reporter.line({"event": event, "step": step, "epoch": clock.epoch, "stage": clock.stage, **values})

    def step(self, clock: Clock, done: int, rates: Mapping[str, float]) -> None:
        """A `step` line: means since the last one."""
        values = {"lr": _shown(rates), **self._means(done)}
        self.line("step", clock, values, done)
        if self.progress is not None:
            self.progress.step(clock, done, values, self.rate)

    def epoch(self, clock: Clock, rates: Mapping[str, float], pictures: int) -> None:
        """An `epoch` line: means over the epoch, rates at its end, seconds so far, pictures per second of all ranks."""
        self._means(clock.done)
        self.last = {"train": self.meter.read_epoch(), "eval": {}}
        self._pictures = pictures
        values = {"lr": _shown(rates), **self.last["train"], "seconds": self.seconds, "images_per_second": self.rate}
        self.line("epoch", clock, values)

    def _means(self, done: int) -> dict[str, float]:
        means = self.meter.read(self.run.accelerator)
        if math.isnan(means.get("loss", 0.0)) and self.run.accelerator.scaler is None:
            folder = self.run.folder
            saved = folder is not None and folder.checkpoint.exists()
            raise InputError(
                f"the loss became NaN before step {done}: lower the learning rate or clip gradients (--clip-grad)"
                + ("; the last checkpoint is from before" if saved else "")
            )
        return means

    def hooks(self, clock: Clock, objective: Objective) -> None:
        """The lines that the objective's hooks left in `records`."""
        for record in objective.records:
            values = dict(record)
            event = values.pop("event")
            self.line(event, clock, values)
            if self.progress is not None:
                self.progress.event(clock, event, values)
        objective.records.clear()

    def figures(self, clock: Clock, values: Mapping[str, float]) -> None:
        """What the probes found after an epoch, in an `eval` line if they did; a sentence of the epoch."""
        if values:
            self.line("eval", clock, values)
        if self.progress is not None:
            self.progress.epoch(clock, self.last["train"], values, self.rate, self.seconds)

    def improves(self, values: Mapping[str, float]) -> bool:
        """Whether this epoch is the best so far; the first of equals stays."""
        name = self.run.best
        return name is not None and name in values and (self.best is None or values[name] > self.best[name])

    def evaluated(self, clock: Clock, values: Mapping[str, float], better: bool) -> None:
        """Remember what the probes said."""
        self.last["eval"] = dict(values)
        if better:
            self.best = {"step": clock.done, "epoch": clock.epoch, "stage": clock.stage, **values}

    def close(self) -> None:
        """Leave the terminal in order."""
        console.show()


def _shown(rates: Mapping[str, float]) -> float | dict[str, float]:
    """One rate as a number, several by name."""
    return next(iter(rates.values())) if len(rates) == 1 else dict(rates)
