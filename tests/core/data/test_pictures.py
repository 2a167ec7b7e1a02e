"""Subsets: balanced, fixed by the seed, and refused where they are impossible."""

import pytest
import torch

from lowbit.data.pictures import MemoryPictures, balanced_subset, val_split
from lowbit.errors import InputError

LABELS = torch.tensor([0] * 50 + [1] * 30 + [2] * 4)[torch.randperm(84, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize(("n", "counts"), [(3, [1, 1, 1]), (12, [4, 4, 4]), (34, [15, 15, 4]), (84, [50, 30, 4])])
def test_balanced_subset(n: int, counts: list[int]) -> None:
    chosen = balanced_subset(LABELS, n)
    assert len(chosen) == n == len(set(chosen.tolist())) and torch.equal(chosen, chosen.sort().values)
    assert LABELS[chosen].bincount(minlength=3).tolist() == counts
    assert torch.equal(chosen, balanced_subset(LABELS, n))
    assert n == 84 or not torch.equal(chosen, balanced_subset(LABELS, n, seed=1))


def test_a_remainder_goes_to_different_classes() -> None:
    assert sorted(LABELS[balanced_subset(LABELS, 5)].bincount(minlength=3).tolist()) == [1, 2, 2]


@pytest.mark.parametrize("n", [0, -1, 85])
def test_an_impossible_limit_is_refused(n: int) -> None:
    with pytest.raises(InputError, match="give 1 to 84"):
        balanced_subset(LABELS, n)


def test_val_split_is_balanced_and_complete() -> None:
    stay, held = val_split(LABELS, 0.1, seed=3)
    assert torch.equal(torch.cat([stay, held]).sort().values, torch.arange(84))
    assert LABELS[held].bincount(minlength=3).tolist() == [5, 3, 0]
    assert not torch.equal(held, val_split(LABELS, 0.1, seed=4)[1])
    assert LABELS[val_split(LABELS, 0.99)[0]].bincount().tolist() == [1, 1, 1]  # no class disappears from training


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 0.001])
def test_an_impossible_fraction_is_refused(fraction: float) -> None:
    with pytest.raises(InputError, match="validation split"):
        val_split(LABELS, fraction)


def test_pictures_without_classes_are_not_held_out() -> None:
    with pytest.raises(InputError, match="omit it"):
        val_split(torch.full((10,), -1), 0.5)


def test_a_subset_keeps_what_belongs_together() -> None:
    images = torch.arange(84, dtype=torch.uint8).view(84, 1, 1, 1).expand(84, 3, 2, 2).contiguous()
    some = MemoryPictures("set", ["a", "b", "c"], images, LABELS, white=16).subset(torch.tensor([5, 2]))
    assert some.images[:, 0, 0, 0].tolist() == [5, 2] and torch.equal(some.labels, LABELS[[5, 2]])
    assert (some.white, some.size, some.classes, len(some)) == (16, (2, 2), ("a", "b", "c"), 2)
