"""Widths of a step: recorded lists of the original program, the four stages, and what it does other than it."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit.errors import InputError
from us3l.sampling import Sampling, uniform_of


@pytest.fixture(scope="module")
def lists(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("us3l") / "sampling.json").read_text())


def drawn(sampling: Sampling, seed: int, count: int, epoch: int = 0, epochs: int = 400) -> list[list[float]]:
    source = random.Random(seed)
    return [list(sampling.widths(epoch, epochs, source.uniform)) for _ in range(count)]


def test_draws_are_the_recorded_ones(lists: dict[str, Any]) -> None:
    seed = lists["seed"]
    for epoch, rows in lists["draws_per_stage_reseeded"].items():
        assert drawn(Sampling(schedule="A"), seed, len(rows), int(epoch)) == rows
    stream, halves = random.Random(seed), Sampling(low=0.5, schedule="A")  # one stream over the stages
    for epoch, rows in lists["range_0.5_1.0_schedule_A"].items():
        assert [list(halves.widths(int(epoch), 400, stream.uniform)) for _ in rows] == rows
    for name, sampling, epoch in (
        ("no_schedule_sandwich3", Sampling(), 0),
        ("no_schedule_no_sandwich3", Sampling(sandwich=False), 0),
        ("schedule_A_no_sandwich3_epoch150", Sampling(sandwich=False, schedule="A"), 150),
    ):
        assert drawn(sampling, seed, len(lists[name]), epoch) == lists[name], name
    for n in (4, 5):  # theirs repeats the ends
        rows = [[widths[0], *sorted(set(widths[1:-1]) - {1.0, 0.25}, reverse=True), widths[-1]]
                for widths in lists[f"sandwich{n}"]]  # fmt: skip
        assert drawn(Sampling(n=n), seed, len(rows)) == rows and len(rows[0]) == n
    assert drawn(Sampling(n=2), seed, 3) == [[1.0, 0.25]] * 3
    assert drawn(Sampling(fixed=(0.5,)), seed, 1) == [lists["single_n1_width0.5"]]
    assert drawn(Sampling(fixed=(0.25, 1.0, 0.75, 0.5)), seed, 1) == [lists["fixed_list"]]


def test_an_unbroken_stream_of_400_epochs(lists: dict[str, Any], golden: Callable[[str], Path]) -> None:
    recorded, source = np.load(golden("us3l") / "sampling.npz"), random.Random(lists["seed"])
    (widths,) = recorded.values()
    sampling = Sampling(schedule="A")
    for epoch, iteration in itertools.product(range(len(widths)), range(widths.shape[1])):
        row = widths[epoch, iteration]
        assert sampling.widths(epoch, 400, source.uniform) == tuple(row[~np.isnan(row)]), epoch


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 10, 100, 401])
def test_stages_of_any_number_of_epochs(epochs: int, lists: dict[str, Any]) -> None:
    """Floor(4 e / E) + 1; the original's stages where E is a multiple of 4."""
    lows = [Sampling(schedule="A").low_at(epoch, epochs) for epoch in range(epochs)]
    assert lows == [pytest.approx([1.0, 0.75, 0.5, 0.25][int(4 * epoch / epochs)]) for epoch in range(epochs)]
    if epochs % 4 == 0 and str(epochs) in lists["stages_by_EPOCHS"]:
        for stage in lists["stages_by_EPOCHS"][str(epochs)]:
            assert lows[stage["first_epoch"]] == stage["minimum"] and lows[stage["first_epoch"] - 1] != stage["minimum"]


def test_draws_of_the_clock_lie_in_their_range() -> None:
    uniform = uniform_of(torch.Generator().manual_seed(0))
    widths = [uniform(0.5, 0.75) for _ in range(500)]
    assert 0.5 <= min(widths) < 0.505 and 0.745 < max(widths) < 0.75 and len(set(widths)) == 500


def test_names_in_the_record() -> None:
    assert Sampling().names((1.0, 0.6, 0.5, 0.25)) == ("max", "middle", "middle", "min")
    assert Sampling(fixed=(1.0, 0.25)).names((1.0, 0.25)) == ("1", "0.25")
    assert Sampling().names((1.0,)) == ("max",) and Sampling(fixed=(0.5,)).names((0.5,)) == ("",)


@pytest.mark.parametrize("wrong", [{"low": 0.0}, {"low": 0.9, "high": 0.8}, {"high": 1.1}, {"n": 1}, {"fixed": (0.0,)}])
def test_what_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Sampling(**wrong)
