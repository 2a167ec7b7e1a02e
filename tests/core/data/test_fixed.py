"""Fixed pictures: the same for a seed, whole for every process, full batches."""

from itertools import islice

import torch

from lowbit.data.fixed import FixedPictures, seeded_subset, shuffled
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import DIGITS, cifar_train, plain

IMAGES = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
PICTURES = MemoryPictures("made up", ["a", "b"], IMAGES, torch.arange(23) % 2)


def test_a_subset_is_drawn_by_its_seed() -> None:
    first, again, other = (seeded_subset(PICTURES, 9, seed) for seed in (0, 0, 1))
    assert len(first) == 9 and torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    whole = seeded_subset(PICTURES, 99, 0)
    assert len(whole) == 23 and torch.equal(whole.images[:9], first.images)


def test_every_process_sees_all_of_them() -> None:
    for options in ({}, {"rank": 1, "world": 2}):
        fixed = FixedPictures(PICTURES, 12, 4, options)
        (batch,) = fixed.evaluated(plain(DIGITS))
        assert len(fixed) == 12 and batch.index.tolist() == list(range(12))
        assert torch.equal(fixed.pictures.images, seeded_subset(PICTURES, 12, 4).images)
        (batch,) = fixed.trained(plain(DIGITS))
        assert sorted(batch.index.tolist()) == list(range(12)) != batch.index.tolist()
        found = list(shuffled(PICTURES, plain(DIGITS), options, seed=4, batch=10))
        assert [len(batch.index) for batch in found] == [10, 10]  # the three that are left make no full batch
        assert len({int(i) for batch in found for i in batch.index}) == 20
        assert all(batch.label is None and batch.share == 1 for batch in found)


def test_shuffled_batches_are_those_of_trainings_first_epoch() -> None:
    recipe = cifar_train(DIGITS, 8, 1)
    loader = Loader(PICTURES, recipe, global_batch=5, seed=7)
    found = list(shuffled(PICTURES, recipe, {}, seed=7, batch=5, limit=3))
    assert len(found) == 3
    for ours, theirs in zip(found, islice(loader.epoch(0), 3), strict=True):
        assert torch.equal(ours.index, theirs.index) and torch.equal(ours.views[0], theirs.views[0])
    (small,) = shuffled(PICTURES, recipe, {}, seed=7, batch=1000)
    assert len(small.index) == 23
