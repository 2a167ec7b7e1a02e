"""Recipes of `linear` from the sections AUG, and what is refused."""

from pathlib import Path

import pytest
import torch

from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import FolderPictures, MemoryPictures, Pictures
from lowbit.data.recipe import CIFAR10, DIGITS, IMAGENET, ColorJitter
from lowbit.data.views import side_of
from lowbit.errors import InputError
from ssql.config import Config, read_config
from ssql.pictures import transforms_of

FILES = FolderPictures("files", ["a"], [Path("a.png")], torch.zeros(1).long())


def memory(height: int, width: int | None = None) -> MemoryPictures:
    images = torch.zeros(2, 3, height, width or height, dtype=torch.uint8)
    return MemoryPictures("made up", ["a"], images, torch.zeros(2).long())


def config_of(*keys: str, name: str = "configs/base/evaluation.yaml") -> Config:
    return read_config("linear", name, keys)


def geometries(pictures: Pictures, *keys: str) -> tuple[Geometry, Geometry]:
    config = config_of(*keys)
    train, shown = transforms_of(config, pictures, side_of(pictures, config.MODEL.side))
    return train.geometry, shown.geometry


def test_cifar_nets_on_cifar_have_the_authors_transforms_whatever_aug_says() -> None:
    for dataset in ("cifar10", "cifar100"):
        keys = (f"TRAIN.DATASET={dataset}", "AUG.TRAIN.RANDOMCROP.ENABLE=True", "AUG.EVALUATION.RESIZE.ENABLE=True")
        train, shown = transforms_of(config_of(*keys, name="cifar/resnet18_linear_eval_cifar.yaml"), memory(32), 32)
        assert train.geometry == RandomResizedCrop(32, (0.8, 1.0), interpolation="bicubic")
        assert shown.geometry == ResizedCenterCrop(36, 32, "bicubic")
        assert train.channels == shown.channels == CIFAR10 and not train.colour
        assert train.is_random and not shown.is_random
    with pytest.raises(InputError, match="at 32 pixels, not 64"):
        transforms_of(config_of(name="cifar/resnet18_linear_eval_cifar.yaml"), memory(32), 64)


def test_the_shipped_configs() -> None:
    train, shown = transforms_of(config_of(name="imagenet/resnet18_linear_eval_imagenet.yaml"), FILES, 224)
    assert train.geometry == RandomResizedCrop(224, (0.08, 1.0))
    assert shown.geometry == ResizedCenterCrop(256, 224)
    assert train.channels == shown.channels == IMAGENET
    train, shown = transforms_of(config_of(name="cifar/resnet50_finetune_cifar.yaml"), memory(32), 224)
    assert train.geometry == RandomResizedCrop(224, (0.08, 1.0))
    assert shown.geometry == ResizedCenterCrop(224, 224)
    assert train.channels == CIFAR10  # as the authors', though the net saw ImageNet


SMALL = "MODEL.INPUTSHAPE=(8, 8)"
CROP, FLIP = "AUG.TRAIN.RANDOMCROP.ENABLE=True", "AUG.TRAIN.HORIZONTAL_FLIP.PROB=0.5"
RANDOM = "AUG.TRAIN.RANDOMRESIZEDCROP.ENABLE=True"
RESIZE, MIDDLE = "AUG.EVALUATION.RESIZE.ENABLE=True", "AUG.EVALUATION.CENTERCROP.ENABLE=True"
SIZE = "AUG.EVALUATION.RESIZE.SIZE=(8, 8)"


@pytest.mark.parametrize(
    ("pictures", "keys", "train", "shown"),
    [
        (memory(8), (SMALL,), Keep(), Keep()),
        (memory(8), (SMALL, FLIP), PaddedCrop(8, 0), Keep()),
        (memory(8), (SMALL, CROP, "AUG.TRAIN.RANDOMCROP.PADDING=1"), PaddedCrop(8, 1, 0.0), Keep()),
        (memory(8), (SMALL, RANDOM, "AUG.TRAIN.HORIZONTAL_FLIP.PROB=0.2"), RandomResizedCrop(8, flip=0.2), Keep()),
        (
            memory(8),
            (SMALL, RANDOM, "AUG.TRAIN.RANDOMRESIZEDCROP.INTERPOLATION=bicubic"),
            RandomResizedCrop(8, interpolation="bicubic", flip=0.0),
            Keep(),
        ),
        (memory(12), (SMALL, RANDOM, RESIZE, SIZE), RandomResizedCrop(8, flip=0.0), ResizedCenterCrop(8, 8)),
        (memory(12, 9), (SMALL, RANDOM, MIDDLE), RandomResizedCrop(8, flip=0.0), ResizedCenterCrop(9, 8)),
        (
            FILES,
            (SMALL, RANDOM, RESIZE, SIZE, "AUG.EVALUATION.RESIZE.KEEP_RATIO=False"),
            RandomResizedCrop(8, flip=0.0),
            ResizedCenterCrop(8, 8, squash=True),
        ),
        (
            FILES,
            (SMALL, RANDOM, RESIZE, MIDDLE, "AUG.EVALUATION.RESIZE.SIZE=(9, 9)"),
            RandomResizedCrop(8, flip=0.0),
            ResizedCenterCrop(9, 8),
        ),
    ],
)
def test_geometry_by_config(pictures: Pictures, keys: tuple[str, ...], train: Geometry, shown: Geometry) -> None:
    assert geometries(pictures, *keys) == (train, shown)


def test_jitter_and_channels() -> None:
    keys = (SMALL, "AUG.TRAIN.COLOR_JITTER.PROB=0.3", "AUG.TRAIN.COLOR_JITTER.HUE=0.2", "TRAIN.DATASET=digits")
    train, shown = transforms_of(config_of(*keys), memory(8), 8)
    assert train.colour == (ColorJitter(0.4, 0.4, 0.2, 0.2, p=0.3),) and not shown.colour
    assert train.channels == shown.channels == DIGITS and train.is_random
    keys = (SMALL, "AUG.TRAIN.NORMLIZATION.MEAN=[0.1, 0.2, 0.3]", "AUG.TRAIN.NORMLIZATION.STD=[1, 2, 3]")
    train, shown = transforms_of(config_of(*keys), memory(8), 8)
    assert train.channels == shown.channels == ((0.1, 0.2, 0.3), (1, 2, 3))
    keys += ("AUG.EVALUATION.NORMLIZATION.MEAN=[0, 0, 0]", "AUG.EVALUATION.NORMLIZATION.STD=[1, 1, 1]")
    assert transforms_of(config_of(*keys), memory(8), 8)[1].channels == ((0, 0, 0), (1, 1, 1))


@pytest.mark.parametrize(
    ("pictures", "keys", "said"),
    [
        (memory(8), ("AUG.TRAIN.VERTICAL_FLIP.PROB=0.5",), "AUG.TRAIN.VERTICAL_FLIP.PROB=0.5"),
        (memory(8), ("AUG.TRAIN.RANDOMERASE.PROB=0.1",), "AUG.TRAIN.RANDOMERASE.PROB=0.1"),
        (memory(8), (CROP, RANDOM), "RANDOMRESIZEDCROP and RANDOMCROP"),
        (memory(9), (FLIP, "AUG.TRAIN.CENTERCROP.ENABLE=True", MIDDLE), "is not mirrored"),
        (memory(9), (RANDOM,), "the pictures are 9x9"),
        (FILES, (RANDOM,), "AUG.EVALUATION has no crop and no RESIZE"),
        (FILES, (RANDOM, RESIZE, SIZE), "enable AUG.EVALUATION.CENTERCROP"),
        (memory(8), (RANDOM, RESIZE), "AUG.EVALUATION.RESIZE.SIZE=[-1, -1]"),
        (memory(8), (RANDOM, RESIZE, "AUG.EVALUATION.RESIZE.SIZE=(9, 9)"), "without CENTERCROP"),
        (memory(8), (RANDOM, RESIZE, MIDDLE, "AUG.EVALUATION.RESIZE.SIZE=(7, 7)"), "resizing to 7"),
    ],
)
def test_what_goes_together_or_cannot_be_done_is_refused(pictures: Pictures, keys: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError) as caught:
        geometries(pictures, SMALL, *keys)
    assert said in str(caught.value)
