"""How pictures are shown: in pretraining two random views, in a probe's training one; one plain view in evaluation."""

from dataclasses import replace

from lowbit.data.geometry import RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import (
    Channels,
    ColorJitter,
    Colour,
    RandomBlur,
    RandomGrayscale,
    Recipe,
    dataset_channels,
    flip_share,
    imagenet_eval,
    plain,
)
from lowbit.data.supervised import supervised_recipes
from lowbit.errors import InputError

WITHOUT_BLUR = ("cifar10", "cifar100")
DIGITS_SCALE = (0.6, 1.0)  # a fifth of a digit is none
FOLDER_SIDE, FOLDER_RESIZE = 224, 256


def side_of(pictures: Pictures, stated: int | None = None) -> int:
    """Height and width of what the net sees: what is stated, else the pictures' own, 224 for files.

    Raises:
        InputError: not square.
    """
    if stated is not None:
        return stated
    height, width = pictures.size if isinstance(pictures, MemoryPictures) else (FOLDER_SIDE, FOLDER_SIDE)
    if height != width:
        raise InputError(f"the pictures of {pictures.name} are {height}x{width}, and views are square: state a size")
    return height


def ssl_views(side: int, channels: Channels, blur: bool) -> Recipe:
    """Of self-supervised pretraining, for each view: crop, flip, jitter, grey, and off CIFAR a blur half the time."""
    colour: tuple[Colour, ...] = (ColorJitter(), RandomGrayscale())
    return Recipe(channels, RandomResizedCrop(side, (0.2, 1.0)), (*colour, RandomBlur()) if blur else colour)


def view_recipes(
    dataset: str, pictures: Pictures, side: int | None = None, channels: Channels | None = None
) -> tuple[Recipe, Recipe]:
    """(both views of a training picture, the picture that a probe sees).

    Args:
        dataset: its name.
        pictures: of either set; those in memory are of one size.
        side: height and width of what the net sees, in pixels; None: as `side_of`.
        channels: of the normalisation; None: the dataset's.
    """
    side, channels = side_of(pictures, side), channels or dataset_channels(dataset)
    train = ssl_views(side, channels, blur=dataset not in WITHOUT_BLUR)
    if dataset == "digits":
        train = Recipe(channels, RandomResizedCrop(side, DIGITS_SCALE, flip=flip_share(dataset)), (ColorJitter(),))
    if not isinstance(pictures, MemoryPictures):
        return train, imagenet_eval(side, round(side * FOLDER_RESIZE / FOLDER_SIDE), channels)
    shown = plain(channels) if pictures.size == (side, side) else Recipe(channels, ResizedCenterCrop(side, side))
    return train, shown


def labelled_views(dataset: str, pictures: Pictures, side: int, channels: Channels) -> tuple[Recipe, Recipe]:
    """(training with labels, evaluation): small pictures cropped out of a margin; a resized crop of all others.

    Args:
        dataset: its name.
        pictures: of either set.
        side: of what the net sees, in pixels.
        channels: of the normalisation.
    """
    small = supervised_recipes(dataset)
    if small is not None and isinstance(pictures, MemoryPictures) and pictures.size == (side, side):
        return replace(small[0], channels=channels), replace(small[1], channels=channels)
    crop = RandomResizedCrop(side, flip=flip_share(dataset))
    return Recipe(channels, crop), view_recipes(dataset, pictures, side, channels)[1]
