"""The section AUG as recipes; which keys go together is tested on a method's configs."""

import pytest
import torch

from lowbit.config.keys.aug import Aug
from lowbit.data.geometry import Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, DIGITS, IMAGENET, Channels, ColorJitter, Recipe
from lowbit.data.transforms import aug_channels, aug_recipes, cifar_recipes
from lowbit.errors import InputError

PICTURES = MemoryPictures("made up", ["a"], torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2).long())
GIVEN = {"MEAN": (0.1, 0.2, 0.3), "STD": (1.0, 2.0, 3.0)}


def aug(train: dict, evaluation: dict | None = None) -> Aug:
    return Aug.model_validate({"TRAIN": train, "EVALUATION": evaluation or {}})


def test_an_empty_section_shows_pictures_as_they_are() -> None:
    assert aug_recipes(Aug(), PICTURES, 8, DIGITS) == (Recipe(DIGITS, Keep()),) * 2


def test_a_filled_section() -> None:
    section = aug({"RANDOMCROP": {"ENABLE": True, "PADDING": 2}, "COLOR_JITTER": {"PROB": 0.5}, "NORMLIZATION": GIVEN})
    train, shown = aug_recipes(section, PICTURES, 8, DIGITS)
    channels = Channels((0.1, 0.2, 0.3), (1, 2, 3))
    assert train == Recipe(channels, PaddedCrop(8, 2, 0.0), (ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.5),))
    assert shown == Recipe(channels, Keep())


def test_evaluation_has_the_channels_of_training_unless_it_states_its_own() -> None:
    other = Channels((0.1, 0.2, 0.3), (1, 2, 3))
    assert aug_channels(aug({}), IMAGENET) == (IMAGENET, IMAGENET)
    assert aug_channels(aug({"NORMLIZATION": GIVEN}), IMAGENET) == (other, other)
    assert aug_channels(aug({}, {"NORMLIZATION": GIVEN}), IMAGENET) == (IMAGENET, other)


def test_cifar_has_transforms_of_its_own() -> None:
    train, shown = cifar_recipes(CIFAR10, DIGITS)
    assert train == Recipe(CIFAR10, RandomResizedCrop(32, (0.8, 1.0), interpolation="bicubic"))
    assert shown == Recipe(DIGITS, ResizedCenterCrop(36, 32, "bicubic"))


@pytest.mark.parametrize("section", ["TRAIN", "EVALUATION"])
def test_a_refusal_names_the_section(section: str) -> None:
    given = Aug.model_validate({section: {"RESIZE": {"ENABLE": True, "SIZE": (9, 9)}}})
    with pytest.raises(
        InputError, match=rf"AUG\.{section}\.RESIZE\.SIZE=\[9, 9\] without CENTERCROP: the net sees 8x8"
    ):
        aug_recipes(given, PICTURES, 8, DIGITS)
