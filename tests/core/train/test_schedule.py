"""Learning rates as functions of the clock."""

import math

import pytest

from lowbit.train.protocol import Clock
from lowbit.train.schedule import Schedule, constant, cosine, linear, milestones


def at(schedule: Schedule, epoch: int, step: int = 0) -> float:
    return schedule(Clock(0, epoch, 4, step, 10, 0))


def test_constant() -> None:
    assert at(constant(0.3), 3, 9) == 0.3


def test_milestones_are_zero_based_epochs_multiplied_one_after_the_other() -> None:
    schedule = milestones(0.1, [1, 3], 0.1)
    assert [at(schedule, epoch, 9) for epoch in range(4)] == [0.1, 0.1 * 0.1, 0.1 * 0.1, 0.1 * 0.1 * 0.1]


@pytest.mark.parametrize(("epoch", "step", "part"), [(0, 0, 0.0), (1, 0, 0.25), (1, 5, 0.375), (3, 9, 0.975)])
def test_cosine_and_linear(epoch: int, step: int, part: float) -> None:
    assert at(cosine(0.5, 0.1), epoch, step) == pytest.approx(0.1 + 0.2 * (1 + math.cos(math.pi * part)))
    assert at(linear(0.5, 0.1), epoch, step) == pytest.approx(0.5 - 0.4 * part)
    whole = (part * 4 // 1) / 4
    for made in (cosine, linear):
        assert at(made(0.5, 0.1, per_step=False), epoch, step) == at(made(0.5, 0.1), int(whole * 4))
