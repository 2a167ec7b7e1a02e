"""What happens after an epoch but not after each: which epochs, and the log lines of one that is over."""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lowbit.metrics import read_metrics
from lowbit.train.folder import RunFolder
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.session import Session

Due = Callable[[Clock], bool]


def after_every(epochs: int) -> Due:
    """After each `epochs`-th epoch, and after the stage's last."""
    return lambda clock: (clock.epoch + 1) % epochs == 0 or clock.epoch + 1 == clock.epochs


def after_multiples(*intervals: int, first: bool = True) -> Due:
    """After the epochs that an interval divides, counted from 0 (`first`: 0 too), and after the stage's last."""

    def due(clock: Clock) -> bool:
        regular = any(clock.epoch % interval == 0 for interval in intervals) and (first or clock.epoch > 0)
        return regular or clock.epoch + 1 == clock.epochs

    return due


def epoch_lines(metrics: Path, clock: Clock, shown: Mapping[str, str]) -> Iterator[str]:
    """The log lines of an epoch: each value of an interval, and in brackets its mean since the epoch began.

    Values that are not finite, which the file holds as null, are shown as nan.

    Args:
        metrics: the run's file of lines.
        clock: of the finished epoch.
        shown: {name in the line: key of the metrics}.
    """
    totals, before = dict.fromkeys(shown.values(), 0.0), 0
    for line in read_metrics(metrics):
        if line["event"] == "step" and line["epoch"] == clock.epoch:
            step = line["step"] - clock.done + clock.steps_per_epoch
            found = {key: math.nan if line[key] is None else line[key] for key in totals}
            totals = {key: total + found[key] * (step - before) for key, total in totals.items()}
            before = step
            values = (f"{name}: {found[key]:.3f}({totals[key] / step:.3f})" for name, key in shown.items())
            yield "\t".join((f"Epoch: [{clock.epoch}][{step}/{clock.steps_per_epoch}]", *values))


def print_epoch_lines(session: Session, folder: RunFolder, shown: Mapping[str, str]) -> Probe:
    """For `Run.probes`: `epoch_lines` on stdout; no figures."""

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if session.accelerator.is_main_process:
            session.say(*epoch_lines(folder.metrics, clock, shown))
        return {}

    return probe
