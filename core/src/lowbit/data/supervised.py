"""How the pictures of a dataset are shown to a net that is trained with their labels, and in its evaluation."""

from lowbit.data.geometry import PaddedCrop
from lowbit.data.recipe import Recipe, cifar_train, dataset_channels, flip_share, plain


def supervised_recipes(dataset: str) -> tuple[Recipe, Recipe] | None:
    """(training, evaluation) of small pictures: cropped out of a black margin, and mirrored where that is no other one.

    Args:
        dataset: its name; None is returned for folders of pictures, which are shown as the net is used to
            (`lowbit.data.recipe.from_timm`).
    """
    channels = dataset_channels(dataset)
    train = {
        "cifar10": cifar_train(channels),
        "cifar100": cifar_train(channels),
        "tiny-imagenet": cifar_train(channels, 64, 8),
        "digits": Recipe(channels, PaddedCrop(8, 1, flip=flip_share("digits"))),
    }
    return (train[dataset], plain(channels)) if dataset in train else None
