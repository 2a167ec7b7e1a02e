"""Learning rates as functions of `Clock`: `Stage.lr` holds them, the loop calls them once per batch."""

import math
from collections.abc import Callable, Sequence

from lowbit.train.protocol import Clock

Schedule = Callable[[Clock], float]


def constant(base: float) -> Schedule:
    """`base` at all times."""
    return lambda clock: base


def milestones(base: float, epochs: Sequence[int], gamma: float = 0.1) -> Schedule:
    """`base`, multiplied by `gamma` at the start of each of the 0-based `epochs` of the stage (one after the other)."""

    def rate(clock: Clock) -> float:
        now = base
        for epoch in epochs:
            if clock.epoch >= epoch:
                now *= gamma
        return now

    return rate


def progress(clock: Clock) -> float:
    """Part of the stage that is over, in [0, 1): counted in steps."""
    return (clock.epoch + clock.step / clock.steps_per_epoch) / clock.epochs


def cosine(base: float, end: float = 0.0, *, per_step: bool = True) -> Schedule:
    """Half a cosine from `base` to `end` over the stage, moving every step or (`per_step=False`) every epoch."""

    def rate(clock: Clock) -> float:
        part = progress(clock) if per_step else clock.epoch / clock.epochs
        return end + (base - end) * (1 + math.cos(math.pi * part)) / 2

    return rate


def linear(base: float, end: float = 0.0, *, per_step: bool = True) -> Schedule:
    """A straight line from `base` to `end` over the stage, moving every step or (`per_step=False`) every epoch."""
    return lambda clock: base + (end - base) * (progress(clock) if per_step else clock.epoch / clock.epochs)


def warmed_up(schedule: Schedule, epochs: int) -> Schedule:
    """`schedule` times a factor that rises linearly to 1 over the first `epochs` of the stage.

    The first step has 1 / (steps of these epochs) of the rate, the last all of it; the schedule itself is not shifted.
    """
    if not epochs:
        return schedule

    def rate(clock: Clock) -> float:
        step = clock.epoch * clock.steps_per_epoch + clock.step + 1
        return schedule(clock) * min(1.0, step / (epochs * clock.steps_per_epoch))

    return rate
