"""N ranks, or N accumulated parts, equal one process (float64, 27 steps, a ragged last batch)."""

from pathlib import Path
from typing import Any

import pytest
import torch

TOYS = ("heads", "two_optimizers", "swap", "queue", "two_stages")
ADAM = 1e-6  # tolerance where Adam is used; it divides by small numbers
EXACT = 1e-9


def tolerance(toy: str) -> float:
    return ADAM if toy == "two_optimizers" else EXACT


@pytest.mark.parametrize(
    ("world", "bn"),
    [
        pytest.param(2, False, id="2-plain"),
        pytest.param(3, True, id="3-bn"),
        pytest.param(2, True, id="2-bn", marks=pytest.mark.slow),
        pytest.param(3, False, id="3-plain", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("toy", TOYS)
def test_ranks_equal_one_process(toys: Any, same: Any, tmp_path: Path, toy: str, bn: bool, world: int) -> None:
    toys.begin(toy=toy, bn=bn, clip_grad=0.5)
    several = toys.run(tmp_path / "several", toy=toy, bn=bn, clip_grad=0.5, world=world)
    same.split(toys.unbroken(toy=toy, bn=bn, clip_grad=0.5), several, tolerance(toy))


@pytest.mark.parametrize("toy", TOYS)
def test_accumulated_parts_equal_one_batch(toys: Any, same: Any, tmp_path: Path, toy: str) -> None:
    one = toys.unbroken(toy=toy, bn=False, clip_grad=0.5)
    several = toys.run(tmp_path / "several", toy=toy, clip_grad=0.5, accumulate=3)
    same.split(one, several, tolerance(toy))


def test_intervals_set_from_data_are_those_of_one_process(toys: Any, tmp_path: Path) -> None:
    """To the last bit: hooks get whole batches, where shards made another number of each rank."""
    one = toys.unbroken(toy="two_optimizers", bn=False, clip_grad=0.5)
    two = toys.run(tmp_path / "two", toy="two_optimizers", world=2, max_steps=1)
    (start, *others) = (torch.load(file)["start"] for file in (one / "rank0.pt", *sorted(two.glob("rank*.pt"))))
    assert start.min() > 0 and len(others) == 2
    assert all(torch.equal(start, other) for other in others)


def test_ranks_and_parts_together(toys: Any, same: Any, tmp_path: Path) -> None:
    """And channels-last weights, which collectives refuse as they are."""
    one = toys.unbroken(toy="heads", bn=False, clip_grad=0.5)
    several = toys.run(tmp_path / "several", toy="heads", clip_grad=0.5, world=2, accumulate=2, channels_last=True)
    same.split(one, several, EXACT)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_float32(toys: Any, same: Any, tmp_path: Path, world: int) -> None:
    one = toys.unbroken(toy="heads", bn=True, dtype="float32", max_steps=9)
    several = toys.run(tmp_path / "several", toy="heads", bn=True, dtype="float32", max_steps=9, world=world)
    same.split(one, several, 1e-5)


def test_what_all_ranks_find_wrong_is_said_once(toys: Any, tmp_path: Path) -> None:
    """And what one finds alone is said too; without others everything is said."""
    started = toys.start(tmp_path / "said", call="say", world=3).wait(0, 0, 0)
    said = [started.said(rank).splitlines()[-2:] for rank in range(3)]
    assert sorted(lines[0] for lines in said) == ["False True False", "False True False", "True True False"]
    assert {lines[1] for lines in said} == {"True"}
