"""All of evaluation on two processes: what one finds, and a stop that one of them saw. Last, since it has to wait."""

from typing import Any

import pytest
import torch

Ranks = dict[str, dict[str, Any]]


@pytest.mark.parametrize("name", ["bank", "queries", "few", "apart"])
def test_features_are_those_of_one_process(ranks: Ranks, name: str) -> None:
    for other in ("2-0", "2-1"):
        for one, several in zip(ranks["1-0"][name], ranks[other][name], strict=True):
            assert torch.equal(one, several)


@pytest.mark.parametrize("name", ["knn", "collapse", "sweep", "scores"])
def test_figures_are_those_of_one_process(ranks: Ranks, name: str) -> None:
    assert ranks["1-0"][name] == ranks["2-0"][name] == ranks["2-1"][name]


def test_heads_are_that_of_one_process(ranks: Ranks) -> None:
    one, first, second = (ranks[name] for name in ("1-0", "2-0", "2-1"))
    assert torch.equal(one["head"], first["head"]) and torch.equal(first["head"], second["head"])
    assert torch.equal(first["fitted"], second["fitted"])
    torch.testing.assert_close(one["fitted"], first["fitted"], rtol=0, atol=1e-9)


def test_all_obey_a_stop_that_one_saw(ranks: Ranks) -> None:
    assert all(set(found["stopped"].values()) == {True} for found in ranks.values())
