"""Learning rates of every epoch, as the authors' programs compute them."""

import re
from typing import Any

from lowbit.train.protocol import Clock
from lowbit.train.schedule import milestones


def test_milestones_are_the_originals(recorded: Any) -> None:
    """Names carry the settings: `..._lr0.1_schedule150_250_epochs300`; gamma is 0.1 in all."""
    table = recorded.json("lr")
    assert len(table) >= 3
    for name, rates in table.items():
        found = re.search(r"lr([\d.]+)_.*schedule_?([\d_]+)_epochs(\d+)", name)
        assert found is not None, name
        gamma = re.search(r"gamma([\d.]+)", name)
        base, epochs, count = float(found[1]), [int(e) for e in found[2].split("_")], int(found[3])
        schedule = milestones(base, epochs, float(gamma[1]) if gamma else 0.1)
        assert [schedule(Clock(0, epoch, count, 0, 391, 0)) for epoch in range(count)] == rates, name
