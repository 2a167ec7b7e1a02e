"""What a person sees of a run: a bar on the terminal, and sentences in the log; `metrics.jsonl` is for programs."""

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lowbit.metrics import accuracies, number, words
from lowbit.train import console
from lowbit.train.protocol import Clock

WIDEST = 30  # characters of the bar; below `NARROWEST` it is a percentage
NARROWEST = 6

log = logging.getLogger(__name__)


class Progress:
    """Tells of a run; only the first process makes one.

    Args:
        total: steps of all stages, as far as this run goes.
        stages: of the run.
        main: the figure whose best is shown; None: the first accuracy that comes.
    """

    def __init__(self, total: int, stages: int, main: str | None) -> None:
        self.total, self.stages, self.main = total, stages, main
        self.best: float | None = None
        self._from, self._since, self._drawn = 0, time.perf_counter(), 0.0

    def start(self, done: int, before: Iterable[Mapping[str, Any]]) -> None:
        """Time left is estimated from here on; `before`: figures of each earlier epoch of a resumed run."""
        self._from, self._since = done, time.perf_counter()
        console.begin_figures()
        for figures in before:
            self._judge(figures)

    def _judge(self, figures: Mapping[str, Any]) -> None:
        found = accuracies(figures)
        self.main = self.main or next(iter(found), None)
        if self.main in found:
            self.best = max(found[self.main], found[self.main] if self.best is None else self.best)

    def draw(self, clock: Clock, done: int, rate: float, loss: Callable[[], float | None]) -> None:
        """The bar after a step, if it is due.

        Args:
            clock: of the step.
            done: steps since the run's start.
            rate: pictures per second.
            loss: reads the step's; a device is waited for.
        """
        now = time.perf_counter()
        width = console.columns() - 1 if now - self._drawn >= console.EVERY else 0
        if width > 0:
            self._drawn = now
            best = None if self.best is None else f"best {self.best:.1f} %"
            facts = _joined(_loss(loss()), _rate(rate), self._left(done), best)
            console.show(bar(self._where(clock), done / self.total, facts, width))

    def step(self, clock: Clock, done: int, values: Mapping[str, Any], rate: float) -> None:
        """A sentence per interval, which the bar replaces."""
        where = f"{self._where(clock)} · step {clock.step + 1}/{clock.steps_per_epoch}"
        log.info(_joined(where, _loss(values.get("loss")), _rate(rate), self._left(done)), extra=console.INTERVAL)

    def epoch(
        self, clock: Clock, trained: Mapping[str, float], figures: Mapping[str, float], rate: float, seconds: float
    ) -> None:
        """A sentence per epoch.

        Args:
            clock: at its end.
            trained: means over its batches.
            figures: of the probes.
            rate: pictures per second.
            seconds: since the run began.
        """
        self._judge(figures)
        left = self._left(clock.done) if clock.done < self.total else f"{_clock_time(seconds)} in all"
        loss = _loss(trained.get("loss"))
        log.info(_joined(self._where(clock), loss, *_accuracies(figures), _rate(rate), left), extra=console.FIGURES)

    def event(self, clock: Clock, event: str, values: Mapping[str, Any]) -> None:
        """A sentence for what a method's hook did."""
        found, rest = _accuracies(values), {k: number(v) for k, v in values.items() if k not in accuracies(values)}
        more = (f"{words(key)} {value:.4g}" for key, value in rest.items() if value is not None)
        log.info(_joined(self._where(clock), event, *found, *more), extra=console.FIGURES)

    def _where(self, clock: Clock) -> str:
        stage = f"stage {clock.stage + 1}/{self.stages} · " if self.stages > 1 else ""
        return f"{stage}epoch {clock.epoch + 1}/{clock.epochs}"

    def _left(self, done: int) -> str | None:
        """Time left, as the steps of this process took, evaluations included; None at the end."""
        if not self._from < done < self.total:
            return None
        seconds = (time.perf_counter() - self._since) / (done - self._from)
        return f"{_clock_time(seconds * (self.total - done))} left"


def bar(where: str, part: float, facts: str, width: int) -> str:
    """One line of `width` characters at most, in the stream's own signs; with little room a percentage.

    Args:
        where: in the run.
        part: that is done, 0 to 1.
        facts: behind the bar.
        width: of the line.
    """
    room = min(width - len(where) - len(facts) - 4, WIDEST)
    if room < NARROWEST:
        return f"{where} {part:4.0%} · {facts}"[:width]
    unicode = (sys.stderr.encoding or "").lower().startswith("utf")
    full, empty = ("█", "░") if unicode else ("#", ".")
    filled = int(part * room)
    return f"{where} {full * filled}{empty * (room - filled)} · {facts}"


def _joined(*parts: str | None) -> str:
    return " · ".join(part for part in parts if part)


def _loss(value: Any) -> str | None:
    found = number(value)
    return None if found is None else f"loss {found:#.3g}" if abs(found) < 100 else f"loss {found:.0f}"


def _accuracies(figures: Mapping[str, Any]) -> list[str]:
    return [f"{words(key)} {value:.1f} %" for key, value in accuracies(figures).items()]


def _rate(pictures: float) -> str:
    return f"{pictures:,.0f} pictures/s" if pictures >= 10 else f"{pictures:.1f} pictures/s"


def _clock_time(seconds: float) -> str:
    """2:05, or 1:02:05 with hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
