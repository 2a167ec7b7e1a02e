"""Recipes of training with labels, by dataset."""

import pytest

from lowbit.data.geometry import PaddedCrop
from lowbit.data.recipe import DIGITS, dataset_channels, plain
from lowbit.data.supervised import supervised_recipes


@pytest.mark.parametrize(
    ("dataset", "crop"),
    [
        ("cifar10", PaddedCrop(32, 4)),
        ("cifar100", PaddedCrop(32, 4)),
        ("tiny-imagenet", PaddedCrop(64, 8)),
        ("digits", PaddedCrop(8, 1, flip=0.0)),
    ],
)
def test_small_pictures(dataset: str, crop: PaddedCrop) -> None:
    recipes = supervised_recipes(dataset)
    assert recipes is not None
    train, shown = recipes
    assert train.geometry == crop and train.colour == () and train.channels == dataset_channels(dataset)
    assert shown == plain(dataset_channels(dataset))


def test_a_mirrored_digit_is_another_and_folders_have_no_recipe() -> None:
    recipes = supervised_recipes("digits")
    assert recipes is not None and recipes[0].geometry.flip == 0 and recipes[0].channels == DIGITS
    assert supervised_recipes("folder") is None
