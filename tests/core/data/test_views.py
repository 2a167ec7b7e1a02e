"""Views of pretraining by dataset, and the side of what the net sees."""

from pathlib import Path

import pytest
import torch

from lowbit.data.geometry import Keep, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import FolderPictures, MemoryPictures
from lowbit.data.recipe import (
    CIFAR10,
    DIGITS,
    IMAGENET,
    ColorJitter,
    Recipe,
    dataset_channels,
    imagenet_eval,
)
from lowbit.data.views import side_of, ssl_views, view_recipes
from lowbit.errors import InputError

FILES = FolderPictures("files", ["a"], [Path("a.png")], torch.zeros(1).long())


def memory(height: int, width: int | None = None) -> MemoryPictures:
    images = torch.zeros(2, 3, height, width or height, dtype=torch.uint8)
    return MemoryPictures("made up", ["a"], images, torch.zeros(2).long())


def test_a_stated_side_wins_over_the_pictures_own() -> None:
    assert (side_of(memory(8)), side_of(memory(8), 16), side_of(FILES), side_of(FILES, 96)) == (8, 16, 224, 96)
    assert side_of(memory(8, 9), 8) == 8
    with pytest.raises(InputError, match="made up are 8x9, and views are square"):
        side_of(memory(8, 9))


@pytest.mark.parametrize(
    ("dataset", "train"),
    [
        ("cifar100", ssl_views(8, CIFAR10, blur=False)),
        ("folder", ssl_views(8, CIFAR10, blur=True)),
        ("digits", Recipe(CIFAR10, RandomResizedCrop(8, (0.6, 1.0), flip=0.0), (ColorJitter(),))),
    ],
)
def test_views_by_dataset(dataset: str, train: Recipe) -> None:
    assert view_recipes(dataset, memory(8), 8, CIFAR10) == (train, Recipe(CIFAR10, Keep()))
    assert train.is_random


def test_the_plain_view_by_what_pictures_there_are() -> None:
    shown = view_recipes("cifar10", memory(9), 8, DIGITS)[1]
    assert shown == Recipe(DIGITS, ResizedCenterCrop(8, 8)) and not shown.is_random
    assert view_recipes("folder", FILES, 112, IMAGENET)[1] == imagenet_eval(112, 128, IMAGENET)


def test_channels_by_dataset() -> None:
    names = ("cifar10", "cifar100", "digits", "tiny-imagenet", "folder", "flowers")
    assert [dataset_channels(name) for name in names] == [CIFAR10, CIFAR10, DIGITS, IMAGENET, IMAGENET, IMAGENET]
