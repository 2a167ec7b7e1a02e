"""The counter hash: a pure function, uniform, independent across its arguments."""

import numpy as np
import pytest
import torch

from lowbit.data.hashing import Draws, permutation, words

RECORDED = [0.1857338766590847, 0.3052240056657627, 0.4593614838793748]


def test_draws_are_fixed_for_ever() -> None:
    """A resumed run may use another machine and other versions: these numbers must never change."""
    draws = Draws(np.array([0, 1, 49999]), seed=3, epoch=7, views=(1,), stream="geometry")
    assert draws.uniform(2)[:, 0].tolist() == pytest.approx(RECORDED, abs=1e-15)


def test_a_draw_depends_on_the_picture_alone_not_on_its_batch() -> None:
    whole = Draws(np.arange(100), 0, 0, (0, 1), "x").uniform(5)
    part = Draws(np.array([40, 3]), 0, 0, (1,), "x").uniform(3)
    assert np.array_equal(part, whole[[140, 103], :3])


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"views": (1,)}, {"stream": "y"}])
def test_every_argument_matters(change: dict[str, object]) -> None:
    base = {"index": np.arange(2000), "seed": 0, "epoch": 0, "views": (0,), "stream": "x"}
    a, b = Draws(**base).uniform(1)[:, 0], Draws(**{**base, **change}).uniform(1)[:, 0]
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.1 and not np.any(a == b)


def test_draws_are_uniform() -> None:
    u = Draws(np.arange(20000), 0, 0).uniform(4)
    assert u.min() >= 0 and u.max() < 1
    counts = np.histogram(u, bins=100, range=(0, 1))[0]
    assert ((counts - 800) ** 2 / 800).sum() < 160  # chi squared with 99 degrees of freedom: p = 1e-4
    assert np.abs(np.corrcoef(u.T) - np.eye(4)).max() < 0.03


def test_permutations_are_permutations_and_differ_by_epoch() -> None:
    first, second = permutation(1000, 0, "order", 0), permutation(1000, 0, "order", 1)
    assert np.array_equal(np.sort(first), np.arange(1000)) and np.array_equal(np.sort(second), np.arange(1000))
    assert (first == second).sum() < 10


def test_no_global_generator_is_touched() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    words(np.arange(10), 1, "x")
    permutation(10, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]
