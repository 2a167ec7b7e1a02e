"""How pictures are shown to what is trained with labels, and in evaluation; the section AUG is without effect.

CIFAR at 32 pixels: crops of 80 to 100 % and mirroring; resized to 36 and the middle 32, both bicubic. Files: random
resized crops; the shorter side resized to 8/7 of what is shown, the middle. Other pictures in memory: crops of 80
to 100 %; all of it. Pretraining's views: `lowbit.data.views`.
"""

from lowbit.data.geometry import RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Recipe, dataset_channels, imagenet_eval, imagenet_train, plain
from lowbit.data.transforms import CIFAR_SCALE, CIFAR_SIDE, cifar_recipes


def transforms_of(dataset: str, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """(the picture that is trained on, the picture that is evaluated), of `side` pixels; `pictures` of either set."""
    channels = dataset_channels(dataset)
    if not isinstance(pictures, MemoryPictures):
        return imagenet_train(side, channels), imagenet_eval(side, round(side * 8 / 7), channels)
    if dataset in ("cifar10", "cifar100") and side == CIFAR_SIDE:
        return cifar_recipes(channels, channels)
    crop = RandomResizedCrop(side, CIFAR_SCALE, flip=0.0 if dataset == "digits" else 0.5)
    whole = plain(channels) if pictures.size == (side, side) else Recipe(channels, ResizedCenterCrop(side, side))
    return Recipe(channels, crop), whole
