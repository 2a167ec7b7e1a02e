"""How the commands show pictures: the keys of a config as arguments of `lowbit.data`.

CIFAR pictures on the `cifar_` nets have the authors' own transforms in `linear` and `default`, whatever AUG says.
"""

from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Channels, Recipe, dataset_channels
from lowbit.data.transforms import CIFAR_SIDE, aug_channels, aug_recipes, cifar_recipes
from lowbit.data.views import view_recipes
from lowbit.errors import InputError
from ssql.config import Config


def channels_of(config: Config) -> Channels:
    """Mean and std of `AUG.TRAIN.NORMLIZATION`, else the dataset's."""
    return aug_channels(config.AUG, dataset_channels(config.TRAIN.DATASET))[0]


def views_of(config: Config, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """Of `ssl`: (both views of a training picture, the picture that a probe sees)."""
    return view_recipes(config.TRAIN.DATASET, pictures, side, channels_of(config))


def transforms_of(config: Config, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """Of `linear`, `default` and `draw`: (the picture that is trained on, the picture that is evaluated).

    Raises:
        InputError: keys that do not go together, or that ask for what cannot be done here.
    """
    default = dataset_channels(config.TRAIN.DATASET)
    if not config.has_fixed_transforms:
        return aug_recipes(config.AUG, pictures, side, default)
    if side != CIFAR_SIDE:
        raise InputError(f"MODEL.INPUTSHAPE: the cifar_ nets are shown CIFAR at {CIFAR_SIDE} pixels, not {side}")
    return cifar_recipes(*aug_channels(config.AUG, default))
