"""Loaders over pictures in memory: order, shards, resume, formats, and nothing global touched."""

import gc
import random
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.data.chunks import parts
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, Recipe, cifar_train, imagenet_eval, imagenet_train, plain
from lowbit.data.views import ssl_views
from lowbit.errors import InputError

VIEWS = ssl_views(32, CIFAR10, blur=True)


def indices(batches: Iterator[Batch]) -> list[int]:
    return [i for batch in batches for i in batch.index.tolist()]


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.index, b.index) and a.share == b.share
    assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_an_epoch_shows_every_picture_once_in_an_order_of_its_own(memory: MemoryPictures) -> None:
    loader = Loader(memory, plain(CIFAR10), global_batch=16, seed=1)
    first, second = indices(loader.epoch(0)), indices(loader.epoch(1))
    assert len(loader) == 7 and loader.last_batch == 5
    assert sorted(first) == sorted(second) == list(range(101)) and first != second
    assert first == indices(loader.epoch(0)) == indices(Loader(memory, VIEWS, global_batch=16, seed=1).epoch(0))
    assert first != indices(Loader(memory, plain(CIFAR10), global_batch=16, seed=2).epoch(0))


def test_views_labels_and_index_belong_together(memory: MemoryPictures) -> None:
    for batch in Loader(memory, plain(CIFAR10), global_batch=16, seed=1).epoch(3):
        assert batch.label is not None and torch.equal(batch.label, memory.labels[batch.index])
        std, mean = (torch.tensor(c).view(3, 1, 1) for c in (CIFAR10.std, CIFAR10.mean))
        assert torch.equal((batch.views[0] * std + mean).mul(255).round().byte(), memory.images[batch.index])


def test_order_is_kept_without_shuffle_and_a_small_last_batch_can_be_dropped(memory: MemoryPictures) -> None:
    assert indices(Loader(memory, VIEWS, global_batch=16, seed=1, shuffle=False).epoch(2)) == list(range(101))
    loader = Loader(memory, VIEWS, global_batch=16, seed=1, drop_last=True)
    assert len(loader) == 6 == len(list(loader.epoch(0))) and loader.last_batch == 16


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_each_batch(memory: MemoryPictures, world: int) -> None:
    one = Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2, dtype=torch.float64)
    ranks = [
        Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2, dtype=torch.float64, rank=r, world=world)
        for r in range(world)
    ]
    for whole, *shares in zip(one.epoch(4), *(loader.epoch(4) for loader in ranks), strict=True):
        assert torch.equal(torch.cat([part.index for part in shares]), whole.index)
        for view in range(2):
            together = torch.cat([part.views[view] for part in shares])
            torch.testing.assert_close(together, whole.views[view], rtol=0, atol=1e-12)
        mean = sum(part.views[0].mean() * part.share for part in shares) / world
        torch.testing.assert_close(mean, whole.views[0].mean(), rtol=0, atol=1e-12)


def test_whole_batches_are_the_same_on_every_rank(memory: MemoryPictures) -> None:
    one, *ranks = (
        Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2, rank=rank, world=world)
        for rank, world in ((0, 1), (0, 2), (1, 2))
    )
    for batch, *others in zip(*(loader.epoch(4, 2, whole=True) for loader in (one, *ranks)), strict=True):
        for other in others:
            assert_same(batch, other)
    assert [len(b.index) for b in ranks[1].epoch(4, whole=True)] == [16] * 6 + [5]
    for batch, other in zip(one.epoch(4), ranks[1].epoch(4, whole=True), strict=True):
        assert_same(batch, other)


def test_resume_inside_an_epoch_shows_the_same_batches(memory: MemoryPictures) -> None:
    whole = list(Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2).epoch(2))
    rest = list(Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2).epoch(2, start=3))
    assert len(rest) == 4
    for a, b in zip(whole[3:], rest, strict=True):
        assert_same(a, b)


def test_epochs_draw_anew(memory: MemoryPictures) -> None:
    loader = Loader(memory, cifar_train(), global_batch=101, seed=1, shuffle=False)
    (a,), (b,) = loader.epoch(0), loader.epoch(1)
    assert (a.views[0] != b.views[0]).flatten(1).any(1).float().mean() > 0.9


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_number_of_threads_changes_nothing(memory: MemoryPictures, threads: int) -> None:
    before = torch.get_num_threads()
    expected = list(Loader(memory, VIEWS, global_batch=50, seed=1, n_views=2, dtype=torch.float64).epoch(0))
    torch.set_num_threads(threads)
    try:
        for batch, other in zip(
            Loader(memory, VIEWS, global_batch=50, seed=1, n_views=2, dtype=torch.float64).epoch(0),
            expected,
            strict=True,
        ):
            assert torch.get_num_threads() == threads
            torch.testing.assert_close(torch.stack(batch.views), torch.stack(other.views), rtol=0, atol=1e-12)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("recipe", [VIEWS, cifar_train(), imagenet_train(32, interpolation="bicubic")])
def test_the_size_of_parts_changes_nothing(
    memory: MemoryPictures, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(Loader(memory, recipe, global_batch=101, seed=1, n_views=2).epoch(0))
    monkeypatch.setattr("lowbit.data.chunks.LARGEST", 20000)
    assert len(parts(101, 2 * 101 * 3072, 1)) > 30
    for batch, other in zip(Loader(memory, recipe, global_batch=101, seed=1, n_views=2).epoch(0), whole, strict=True):
        torch.testing.assert_close(torch.stack(batch.views), torch.stack(other.views), rtol=0, atol=1e-6)


def test_parts_cover_a_batch() -> None:
    for n, values, threads, count in [
        (100, 100 * 3072, 2, 2),
        (100, 100 * 3072, 64, 4),
        (5, 10, 2, 1),
        (4, 4 << 20, 1, 4),
    ]:
        slices = parts(n, values, threads)
        assert len(slices) == count
        assert [i for part in slices for i in range(n)[part]] == list(range(n))


def test_threads_end_with_the_epoch(memory: MemoryPictures) -> None:
    before, wanted = threading.active_count(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = Loader(memory, VIEWS, global_batch=50, seed=1, n_views=2).epoch(0)
        next(batches)
        assert threading.active_count() == before + 2 and torch.get_num_threads() == 2
        new: list[int] = []
        thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert new == [2]  # the pool's threads keep their 1 to themselves
        del batches
        gc.collect()
        assert threading.active_count() == before
    finally:
        torch.set_num_threads(wanted)


@pytest.mark.parametrize("recipe", [VIEWS, cifar_train(), plain(CIFAR10), imagenet_eval(24, 28)])
def test_the_device_is_never_asked(memory: MemoryPictures, recipe: Recipe) -> None:
    """Tensors on "meta" hold no values: mixing devices fails, as on a GPU, and so does anything that would wait."""
    for batch in Loader(memory, recipe, global_batch=50, seed=1, n_views=2, device="meta").epoch(0):
        assert batch.label is not None
        assert {t.device.type for t in (*batch.views, batch.index, batch.label)} == {"meta"}


def test_no_global_generator_is_touched(memory: MemoryPictures) -> None:
    def state() -> tuple[Tensor, object, np.ndarray]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index]

    before = state()
    list(Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2).epoch(0))
    list(EvalLoader(memory, plain(CIFAR10), batch_size=16))
    after = state()
    assert torch.equal(before[0], after[0]) and before[1] == after[1] and np.array_equal(before[2], after[2])


def test_formats(memory: MemoryPictures) -> None:
    loader = Loader(
        memory, VIEWS, global_batch=16, seed=1, n_views=2, labels=False, channels_last=True, dtype=torch.float64
    )
    plain_loader = Loader(memory, VIEWS, global_batch=16, seed=1, n_views=2, dtype=torch.float64)
    for batch, other in zip(loader.epoch(0), plain_loader.epoch(0), strict=True):
        assert batch.label is None and len(batch.views) == 2 and batch.share == 1
        for view, same in zip(batch.views, other.views, strict=True):
            assert view.dtype == torch.float64 and view.is_contiguous(memory_format=torch.channels_last)
            assert same.is_contiguous()
            torch.testing.assert_close(view, same, rtol=0, atol=1e-12)


def test_impossible_batches_are_refused(memory: MemoryPictures) -> None:
    with pytest.raises(InputError, match="the last batch of an epoch holds 1 of 101 pictures"):
        Loader(memory, VIEWS, global_batch=50, seed=0, world=2)
    Loader(memory, VIEWS, global_batch=50, seed=0, world=2, drop_last=True)
    with pytest.raises(InputError, match="no whole batch"):
        Loader(memory, VIEWS, global_batch=102, seed=0, drop_last=True)
    with pytest.raises(InputError, match="from 1 to 101"):
        Loader(memory, VIEWS, global_batch=0, seed=0)
    with pytest.raises(InputError, match="evaluation batch of 0"):
        EvalLoader(memory, VIEWS, batch_size=0)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_is_sharded_by_whole_batches(memory: MemoryPictures, world: int) -> None:
    expected = [list(range(start, min(start + 20, 101))) for start in range(0, 101, 20)]
    found: list[list[int]] = [[] for _ in expected]
    for rank in range(world):
        loader = EvalLoader(memory, plain(CIFAR10), batch_size=20, rank=rank, world=world)
        batches = list(loader)
        assert len(loader) == len(batches) == len(list(loader))
        for k, batch in enumerate(batches):
            assert batch.label is not None and torch.equal(batch.label, memory.labels[batch.index])
            found[rank + k * world] = batch.index.tolist()
    assert found == expected
