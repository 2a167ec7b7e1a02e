"""Augmentation mixes no devices and asks the device for no value: batches of a loader on tensors without values."""

import runpy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from lowbit.data import colour, resample
from lowbit.data import recipe as recipes
from lowbit.data.batch import Batch
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, Recipe, cifar_train, imagenet_eval, imagenet_train, plain
from lowbit.data.views import ssl_views

RECIPES = {
    "plain": plain(CIFAR10),
    "cifar_train": cifar_train(),
    "imagenet_train": imagenet_train(24),
    "imagenet_train bicubic": imagenet_train(24, interpolation="bicubic"),
    "imagenet_eval": imagenet_eval(24, 28),
    "ssl_views": ssl_views(32, CIFAR10, blur=False),
    "ssl_views blur": ssl_views(24, CIFAR10, blur=True),
}


@pytest.fixture(autouse=True)
def no_constants_of_other_tests() -> Iterator[None]:
    """Neither real ones of other tests here, nor fake ones there."""
    cached = (recipes._constants, colour._number, resample._bank)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fake_step.py")))


def batches(memory: MemoryPictures, recipe: Recipe, device: str) -> list[Batch]:
    if device != "cpu":
        fake.need_fake_cuda()
    pictures = MemoryPictures("fake", memory.classes, memory.images.clone(), memory.labels)
    with FakeTensorMode(allow_non_fake_inputs=True):
        return list(Loader(pictures, recipe, global_batch=50, seed=1, n_views=2, device=device).epoch(0))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_recipes_on_fake_tensors(memory: MemoryPictures, recipe: Recipe, device: str) -> None:
    """Draws are real tensors of the CPU, which a GPU's operations refuse; reading a value back raises."""
    for batch in batches(memory, recipe, device):
        assert batch.label is not None
        assert {str(tensor.device) for tensor in (*batch.views, batch.index, batch.label)} == {device}
        assert all(isinstance(view, FakeTensor) and view.dtype == torch.float32 for view in batch.views)


def test_what_stays_on_the_cpu_is_found(memory: MemoryPictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipes, "_chosen", lambda table, device: torch.arange(len(table)))
    with pytest.raises(RuntimeError, match="same device"):
        batches(memory, ssl_views(32, CIFAR10, blur=False), "cuda:0")
