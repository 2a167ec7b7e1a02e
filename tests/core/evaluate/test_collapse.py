"""The spread of z: against numpy, at its two ends, as a probe of a run."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lowbit.evaluate.collapse import Spread, collapse_probe, effective_rank, spread, unit_std
from lowbit.train.protocol import Clock, Objective


@pytest.mark.parametrize(("n", "dim"), [(2, 3), (40, 8), (8, 40)])
def test_equals_numpy(n: int, dim: int) -> None:
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(n)) + 0.3
    unit = z.numpy().astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    p = np.linalg.svd(unit, compute_uv=False)
    p = p / p.sum()
    found = spread(z)
    assert found.z_std == pytest.approx(unit.std(axis=0, ddof=1).mean(), rel=1e-6)
    assert found.z_std_relative == pytest.approx(found.z_std * math.sqrt(dim))
    assert found.effective_rank == pytest.approx(math.exp(-(p * np.log(p)).sum()), rel=1e-6)


def test_health_is_near_one_and_uses_all_directions() -> None:
    found = spread(torch.randn(4000, 32, generator=torch.Generator().manual_seed(0)))
    assert found.z_std_relative == pytest.approx(1, abs=0.02)
    assert found.effective_rank == pytest.approx(32, abs=0.5)
    assert not found.collapsed


@pytest.mark.parametrize("point", [0.0, 3.0])
def test_one_point_is_collapse(point: float) -> None:
    found = spread(torch.full((20, 16), point))
    assert found.z_std == pytest.approx(0, abs=1e-12) and found.collapsed
    assert found.effective_rank == pytest.approx(1 if point else 0, abs=1e-5)


def test_few_directions_hide_from_the_std_and_not_from_the_rank() -> None:
    generator = torch.Generator().manual_seed(0)
    found = spread(torch.randn(500, 3, generator=generator) @ torch.randn(3, 64, generator=generator))
    assert not found.collapsed
    assert 2 < found.effective_rank <= 3 + 1e-6


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_equal_singular_values_count_as_directions(rank: int) -> None:
    z = torch.zeros(7, 6, dtype=torch.float64)
    z[range(rank), range(rank)] = 4.0
    assert effective_rank(z).item() == pytest.approx(rank)


def test_std_has_a_gradient_so_that_a_loss_may_use_it() -> None:
    z = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(unit_std, z)


@pytest.mark.parametrize("z", [torch.tensor([[1.0, math.nan], [0, 1]]), torch.ones(1, 4)])
def test_what_cannot_be_judged_counts_as_collapse(z: torch.Tensor) -> None:
    found = spread(z)
    assert all(math.isnan(value) for value in found) and found.collapsed


def test_health_begins_above_half() -> None:
    assert Spread(0.1, 0.5, 2.0).collapsed and not Spread(0.1, 0.51, 2.0).collapsed


def test_as_a_probe_of_a_run(accelerator: Accelerator, cut: Any) -> None:
    objective = Objective()
    objective.encoder = nn.Linear(6, 4)
    x = torch.randn(50, 6)
    probe = collapse_probe(lambda o: o.get_submodule("encoder"), cut(x, None, 20), accelerator, every=3)
    clock = Clock(0, 0, 5, 1, 1, 0)
    assert probe(clock, objective) == {}
    assert probe(clock._replace(epoch=2), objective) == spread(objective.encoder(x))._asdict()
    assert set(probe(clock._replace(epoch=4), objective)) == {"z_std", "z_std_relative", "effective_rank"}
