"""Running means."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowbit.train.log import Meter

ONE: Any = SimpleNamespace(num_processes=1)


def test_means_are_weighted_by_share() -> None:
    meter = Meter()
    for value, weight in ((1.0, 1.0), (4.0, 0.5)):
        meter.add("loss", torch.tensor(value, requires_grad=True) * 1, weight)
    assert meter.read(ONE) == {"loss": 2.0}
    assert meter.read(ONE) == {}
    meter.add("loss", torch.tensor(7.0), 1.5)
    assert meter.read(ONE) == {"loss": 7.0}
    assert meter.read_epoch() == {"loss": pytest.approx((1 + 2 + 10.5) / 3)}
    assert meter.read_epoch() == {}


def test_saving_in_between_changes_no_mean() -> None:
    values = torch.rand(20)
    unbroken, broken = Meter(), Meter()
    for number, value in enumerate(values):
        unbroken.add("loss", value, 1.0)
        broken.add("loss", value, 1.0)
        if number == 7:
            assert broken.read(ONE) == unbroken.read(ONE)
        if number in (3, 12):
            state, broken = broken.state(), Meter()
            broken.load(state)
    assert unbroken.read(ONE) == broken.read(ONE)
    assert unbroken.read_epoch() == broken.read_epoch()
