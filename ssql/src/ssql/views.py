"""How pictures are prepared in pretraining: two random views for training, one plain view for the probes."""

from lowbit.data.geometry import RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import (
    CIFAR10,
    DIGITS,
    IMAGENET,
    Channels,
    ColorJitter,
    Recipe,
    imagenet_eval,
    plain,
    ssl_views,
)
from lowbit.errors import InputError
from ssql.config import Config

SMALL = ("cifar10", "cifar100")  # shown without blur, as the authors have it on CIFAR
DIGITS_SCALE = (0.6, 1.0)  # a fifth of a digit is none, and a mirrored one is another
CHANNELS = {"cifar10": CIFAR10, "cifar100": CIFAR10, "digits": DIGITS}  # CIFAR-100 as CIFAR-10, as the authors do
FOLDER_SIDE, FOLDER_RESIZE = 224, 256


def side_of(config: Config, pictures: Pictures) -> int:
    """Height and width of what the net sees: `MODEL.INPUTSHAPE`, else the pictures' own, 224 for files.

    Raises:
        InputError: not square.
    """
    height, width = config.MODEL.INPUTSHAPE
    if (height, width) == (-1, -1):
        height, width = pictures.size if isinstance(pictures, MemoryPictures) else (FOLDER_SIDE, FOLDER_SIDE)
    if height != width:
        raise InputError(f"MODEL.INPUTSHAPE={[height, width]}: views are square, give two equal sizes")
    return height


def channels_of(config: Config, evaluation: bool = False) -> Channels:
    """Mean and std of `AUG.TRAIN.NORMLIZATION`, else the dataset's; with `evaluation` first of `AUG.EVALUATION`."""
    given = config.AUG.TRAIN.NORMLIZATION
    if evaluation and config.AUG.EVALUATION.NORMLIZATION.MEAN:
        given = config.AUG.EVALUATION.NORMLIZATION
    if given.MEAN:
        (r, g, b), (sr, sg, sb) = given.MEAN, given.STD
        return Channels((r, g, b), (sr, sg, sb))
    return CHANNELS.get(config.TRAIN.DATASET, IMAGENET)


def recipes(config: Config, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """(both views of a training picture, the picture that a probe sees)."""
    channels = channels_of(config)
    train = ssl_views(side, channels, blur=config.TRAIN.DATASET not in SMALL)
    if config.TRAIN.DATASET == "digits":
        train = Recipe(channels, RandomResizedCrop(side, DIGITS_SCALE, flip=0.0), (ColorJitter(),))
    if not isinstance(pictures, MemoryPictures):
        return train, imagenet_eval(side, round(side * FOLDER_RESIZE / FOLDER_SIDE), channels)
    shown = plain(channels) if pictures.size == (side, side) else Recipe(channels, ResizedCenterCrop(side, side))
    return train, shown
