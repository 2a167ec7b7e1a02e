"""How pictures are shown: the CIFAR programs' small ones, and `main`'s at 224 pixels or as they are.

`main`: a crop of 8 to 100 %, mirrored, brightness, contrast and saturation in 1 +- 0.2 (the authors' hue of 0.1 is in
degrees, which is none); evaluation resizes the shorter side by 256 / 224 and shows the centre. Small pictures at their
own size are cropped out of a margin.
"""

from dataclasses import replace
from pathlib import Path

from lowbit.data.geometry import RandomResizedCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Channels, ColorJitter, Recipe, dataset_channels, imagenet_eval
from lowbit.data.views import FOLDER_RESIZE, FOLDER_SIDE, labelled_views, side_of
from sqakd.options import TINY, TrainOptions

CHANNELS = {"cifar100": Channels((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))}
JITTER = ColorJitter(0.2, 0.2, 0.2, 0.0, p=1.0)


def dataset_of(own: TrainOptions, root: Path) -> str:
    """The stated dataset, else by what the folder holds: Tiny-ImageNet as it unpacks, or class folders."""
    places = (root / "tiny-imagenet-200", root)
    raw = any((place / "val/val_annotations.txt").is_file() for place in places)
    return own.dataset or ("tiny-imagenet" if raw else "folder")


def shown_side(own: TrainOptions, pictures: Pictures) -> int:
    """Height and width of what the net sees."""
    large = own.command == TINY and pictures.name != "digits"
    return side_of(pictures, own.image_size or (FOLDER_SIDE if large else None))


def recipes(own: TrainOptions, dataset: str, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """(training, evaluation)."""
    channels = CHANNELS.get(dataset) or dataset_channels(dataset)
    views, shown = labelled_views(dataset, pictures, side, channels)
    if own.command == TINY and isinstance(views.geometry, RandomResizedCrop):
        views = replace(views, colour=(JITTER,))
        if isinstance(pictures, MemoryPictures):
            shown = imagenet_eval(side, round(side * FOLDER_RESIZE / FOLDER_SIDE), channels)
    return views, shown
