"""Loaders over picture files: workers change nothing, survive signals, end in time; unreadable pictures are counted."""

import gc
import logging
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lowbit.data.batch import Batch
from lowbit.data.hashing import Draws
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import CIFAR10, IMAGENET, Recipe, imagenet_eval, plain
from lowbit.data.views import ssl_views
from lowbit.errors import STOP_SIGNALS, InputError

VIEWS = ssl_views(24, CIFAR10, blur=True)


def same(a: list[Batch], b: list[Batch]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.index, y.index) and all(torch.equal(u, v) for u, v in zip(x.views, y.views, strict=True))
        for x, y in zip(a, b, strict=True)
    )


def no_workers_left(seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while multiprocessing.active_children() and time.monotonic() < end:
        time.sleep(0.02)
    return not multiprocessing.active_children()


def test_workers_change_nothing_and_touch_no_global_generator(folder: FolderPictures) -> None:
    before = torch.get_rng_state()
    loaders = [Loader(folder, VIEWS, global_batch=8, seed=1, n_views=2, workers=w) for w in (0, 2)]
    alone, together = (list(loader.epoch(1)) for loader in loaders)
    assert same(alone, together) and same(alone[2:], list(loaders[1].epoch(1, start=2)))
    assert torch.equal(torch.get_rng_state(), before) and no_workers_left()


def test_views_are_the_recipe_of_each_picture(folder: FolderPictures) -> None:
    recipe = Recipe(IMAGENET, VIEWS.geometry)
    batch = next(Loader(folder, recipe, global_batch=8, seed=1, n_views=2).epoch(0))
    assert torch.equal(batch.label, folder.labels[batch.index])
    std, mean = (torch.tensor(c).view(3, 1, 1) for c in (IMAGENET.std, IMAGENET.mean))
    for view in range(2):
        for k, i in enumerate(batch.index.tolist()):
            image = Image.open(folder.paths[i])
            size = [np.array([float(side)]) for side in (image.height, image.width)]
            (row,) = recipe.geometry.draw(Draws(np.array([i]), 1, 0, (view,), "geometry"), *size)
            shown = torch.from_numpy(np.array(recipe.geometry.picture(image, row))).permute(2, 0, 1)
            assert torch.equal((batch.views[view][k] * std + mean).mul(255).round().byte(), shown)


def test_evaluation_of_a_folder(folder: FolderPictures) -> None:
    batches = [list(EvalLoader(folder, imagenet_eval(24, 28), batch_size=7, workers=w)) for w in (0, 2)]
    assert same(*batches) and [len(b.index) for b in batches[0]] == [7, 7, 7, 7, 2]
    assert batches[0][0].views[0].shape == (7, 3, 24, 24)


def test_workers_survive_signals_to_the_process_group(folder: FolderPictures) -> None:
    expected = list(Loader(folder, VIEWS, global_batch=2, seed=1).epoch(0))
    batches = Loader(folder, VIEWS, global_batch=2, seed=1, workers=2).epoch(0)
    seen = [next(batches)]
    for worker in multiprocessing.active_children():
        for number in STOP_SIGNALS:
            os.kill(worker.pid or 0, number)
    assert same([*seen, *batches], expected) and no_workers_left()


def test_workers_end_when_the_iterator_is_dropped(folder: FolderPictures) -> None:
    batches = Loader(folder, VIEWS, global_batch=2, seed=1, workers=2).epoch(0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    del batches
    gc.collect()
    assert no_workers_left()


HELD = """
import sys, torch
from pathlib import Path
from lowbit.data.loader import Loader
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import CIFAR10
from lowbit.data.views import ssl_views
paths = sorted(Path(sys.argv[1]).rglob("*.png"))
pictures = FolderPictures("x", ["a"], paths, torch.zeros(len(paths), dtype=torch.int64))
held = Loader(pictures, ssl_views(24, CIFAR10, blur=False), global_batch=2, seed=1, workers=2).epoch(0)
next(held)
raise SystemExit(3)
"""


def test_a_program_ends_while_something_holds_the_iterator(folder: FolderPictures) -> None:
    command = [sys.executable, "-c", HELD, str(folder.paths[0].parent.parent)]
    assert subprocess.run(command, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}).returncode == 3


def damage(pictures: FolderPictures, *positions: int) -> None:
    """A truncated file, no picture at all, no file at all."""
    for k, position in enumerate(positions):
        path = pictures.paths[position]
        if k % 3 == 0:
            path.write_bytes(path.read_bytes()[:200])
        elif k % 3 == 1:
            path.write_text("not a picture")
        else:
            path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_pictures_are_named_once_and_replaced(
    folder: FolderPictures, workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    clean = list(Loader(folder, VIEWS, global_batch=8, seed=1).epoch(0))
    damage(folder, 3, 10, 20)
    loader = Loader(folder, VIEWS, global_batch=8, seed=1, workers=workers, max_corrupt=0.1)
    with caplog.at_level(logging.WARNING):
        first, second = list(loader.epoch(0)), list(loader.epoch(0))
    assert same(first, second) and sorted(r.args[0] for r in caplog.records) == [folder.paths[i] for i in (3, 10, 20)]  # type: ignore[index]
    for before, after in zip(clean, first, strict=True):
        bad = torch.isin(before.index, torch.tensor([3, 10, 20]))
        assert torch.equal(before.index[~bad], after.index[~bad])
        assert torch.equal(before.views[0][~bad], after.views[0][~bad])
        assert not torch.isin(after.index, torch.tensor([3, 10, 20])).any()
        assert torch.equal(after.label, folder.labels[after.index])


def test_evaluation_leaves_unreadable_pictures_out(folder: FolderPictures) -> None:
    damage(folder, 3, 10, 20)
    batches = list(EvalLoader(folder, imagenet_eval(24, 28), batch_size=10, workers=2, max_corrupt=0.1))
    assert [i for b in batches for i in b.index.tolist()] == [i for i in range(30) if i not in (3, 10, 20)]
    damage(folder, 0, 1, 2)
    batches = list(EvalLoader(folder, imagenet_eval(24, 28), batch_size=2, max_corrupt=1))
    assert [b.index.tolist() for b in batches][:2] == [[4, 5], [6, 7]]  # batches without a picture are not shown


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_unreadable_pictures_are_an_error(folder: FolderPictures, workers: int) -> None:
    damage(folder, 3, 10, 20)
    with pytest.raises(InputError, match=r"of 30 pictures of made-up are unreadable, the last .*; at most 0.05"):
        list(Loader(folder, VIEWS, global_batch=8, seed=1, workers=workers, max_corrupt=0.05).epoch(0))
    assert no_workers_left()


def test_unreadable_pictures_are_counted_once_over_loaders(folder: FolderPictures) -> None:
    damage(folder, 3, 10, 20)
    for _ in range(2):  # three of thirty is what is tolerated, however often they are met
        list(Loader(folder, VIEWS, global_batch=8, seed=1, max_corrupt=0.1).epoch(0))
        list(EvalLoader(folder, imagenet_eval(24, 28), batch_size=10, max_corrupt=0.1))
    assert folder.unreadable.add(20) == (False, 3) and folder.unreadable.add(0) == (True, 4)
    assert folder.subset(torch.arange(5)).unreadable.add(0) == (True, 1)


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group whose store several loaders share, as the processes of a run do."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_ranks_count_unreadable_pictures_together(folder: FolderPictures, caplog: pytest.LogCaptureFixture) -> None:
    damage(folder, 3, 10, 20)

    def rank(number: int, limit: float, epochs: int = 3) -> None:
        own = FolderPictures(folder.name, folder.classes, folder.paths, folder.labels)
        loader = Loader(own, VIEWS, global_batch=10, seed=1, rank=number, world=2, max_corrupt=limit)
        for epoch in range(epochs):
            list(loader.epoch(epoch))

    with caplog.at_level(logging.WARNING):
        rank(0, 0.1)
        rank(1, 0.1)
    assert sorted(record.args[0] for record in caplog.records) == [folder.paths[i] for i in (3, 10, 20)]  # type: ignore[index]
    whole = folder.subset(torch.arange(30))
    damage(whole, 1)
    with pytest.raises(InputError, match="4 of 30 pictures of made-up are unreadable"):
        rank(0, 0.1)
        rank(1, 0.1)
    assert whole.unreadable.add(3) == (False, 4)  # this process had not met it, another had


def test_no_readable_picture_at_all_is_an_error(folder: FolderPictures) -> None:
    damage(folder, *range(30))
    with pytest.raises(InputError, match="no readable picture"):
        list(Loader(folder, VIEWS, global_batch=8, seed=1, max_corrupt=1).epoch(0))


@pytest.mark.parametrize("workers", [0, 2])
def test_mixed_sizes_need_a_recipe_that_resizes(folder: FolderPictures, workers: int) -> None:
    with pytest.raises(InputError, match="pictures of different sizes need a recipe that resizes them"):
        list(Loader(folder, plain(CIFAR10), global_batch=8, seed=1, workers=workers).epoch(0))


def test_grey_and_palette_files_become_colour(write_folder: Callable[..., Path]) -> None:
    root = write_folder(6, 32)
    paths = sorted((root / "train").rglob("*.png"))
    for path, mode in zip(paths, ("L", "P", "RGBA", "1", "CMYK", "I;16"), strict=True):
        image = Image.open(path).convert("L" if mode in ("I;16", "1") else "RGB")
        (image if mode == "I;16" else image.convert(mode)).save(path, "TIFF" if mode == "CMYK" else "PNG")
    pictures = FolderPictures("modes", ["a"], paths, torch.zeros(6, dtype=torch.int64))
    (batch,) = EvalLoader(pictures, plain(CIFAR10), batch_size=6)
    assert batch.views[0].shape == (6, 3, 32, 32) and batch.views[0].std() > 0.5
