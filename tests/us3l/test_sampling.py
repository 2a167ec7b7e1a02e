"""Widths of a step: recorded lists of the original program, the four stages, and what it does other than it."""

import itertools
import json
import random
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lowbit.errors import InputError
from us3l.objective import uniform_of
from us3l.sampling import Sampling


@pytest.fixture(scope="module")
def lists(golden: Callable[[str], Path]) -> dict[str, Any]:
    return json.loads((golden("us3l") / "sampling.json").read_text())


def drawn(sampling: Sampling, seed: int, count: int, epoch: int = 0, epochs: int = 400) -> list[list[float]]:
    source = random.Random(seed)
    return [list(sampling.widths(epoch, epochs, source.uniform)) for _ in range(count)]


def named(lists: dict[str, Any], pattern: str) -> list[tuple[tuple[float, ...], Any]]:
    """Entries by a pattern of their names, with the numbers in them."""
    found = [(re.fullmatch(pattern, name), rows) for name, rows in lists.items()]
    return [(tuple(map(float, match.groups())), rows) for match, rows in found if match]


def test_draws_are_the_recorded_ones(lists: dict[str, Any]) -> None:
    seed, (high, *_, low) = lists["seed"], lists["no_schedule_sandwich3"][0]
    make = partial(Sampling, low, high)
    for epoch, rows in lists["draws_per_stage_reseeded"].items():
        assert drawn(make(schedule="A"), seed, len(rows), int(epoch)) == rows
    ((bottom, top), stages) = named(lists, r"range_([\d.]+)_([\d.]+)_schedule_A")[0]
    stream, narrow = random.Random(seed), Sampling(bottom, top, schedule="A")  # one stream over the stages
    for epoch, rows in stages.items():
        assert [list(narrow.widths(int(epoch), 400, stream.uniform)) for _ in rows] == rows
    assert drawn(make(), seed, 20) == lists["no_schedule_sandwich3"][:20]
    rows = lists["no_schedule_no_sandwich3"]
    assert drawn(make(sandwich=False), seed, len(rows)) == rows
    (((epoch_of,), rows),) = named(lists, r"schedule_A_no_sandwich3_epoch(\d+)")
    assert drawn(make(sandwich=False, schedule="A"), seed, len(rows), int(epoch_of)) == rows
    for n in (4, 5):  # theirs repeats the ends
        rows = [[high, *(width for width in widths if low < width < high), low] for widths in lists[f"sandwich{n}"]]
        assert drawn(make(n=n), seed, len(rows)) == rows and len(rows[0]) == n
    assert drawn(make(n=2), seed, 3) == [[high, low]] * 3
    (((width,), rows),) = named(lists, r"single_n1_width([\d.]+)")
    assert drawn(Sampling(fixed=(width,)), seed, 1) == [rows]
    assert drawn(Sampling(fixed=tuple(sorted(lists["fixed_list"]))), seed, 1) == [lists["fixed_list"]]


def test_an_unbroken_stream_of_400_epochs(lists: dict[str, Any], golden: Callable[[str], Path]) -> None:
    recorded, source = np.load(golden("us3l") / "sampling.npz"), random.Random(lists["seed"])
    (widths,) = recorded.values()
    sampling = Sampling(float(np.nanmin(widths)), float(np.nanmax(widths)), schedule="A")
    for epoch, iteration in itertools.product(range(len(widths)), range(widths.shape[1])):
        row = widths[epoch, iteration]
        assert sampling.widths(epoch, len(widths), source.uniform) == tuple(row[~np.isnan(row)]), epoch


@pytest.mark.parametrize("epochs", [1, 2, 3, 4, 5, 7, 10, 100, 401])
def test_stages_of_any_number_of_epochs(epochs: int, lists: dict[str, Any]) -> None:
    """Floor(4 e / E) + 1; the original's stages where E is a multiple of 4."""
    lows = [Sampling(schedule="A").low_at(epoch, epochs) for epoch in range(epochs)]
    assert lows == [pytest.approx([1.0, 0.75, 0.5, 0.25][int(4 * epoch / epochs)]) for epoch in range(epochs)]
    if epochs % 4 == 0 and str(epochs) in lists["stages_by_EPOCHS"]:
        for stage in lists["stages_by_EPOCHS"][str(epochs)]:
            assert lows[stage["first_epoch"]] == stage["minimum"] and lows[stage["first_epoch"] - 1] != stage["minimum"]


def test_what_a_run_trains() -> None:
    """Schedule A of fewer than four epochs does not open the whole range."""
    lows = [Sampling(schedule="A").trained(epochs) for epochs in range(6)]
    assert [low for low, _ in lows] == pytest.approx([0.25, 1.0, 0.5, 0.5, 0.25, 0.25])
    assert {high for _, high in lows} == {1.0} and Sampling().trained(1) == (0.25, 1.0)
    assert Sampling(fixed=(1.0, 0.5)).trained(1) == (1.0, 0.5)


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
