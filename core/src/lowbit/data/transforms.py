"""How pictures are shown to what is trained with labels, and in evaluation: the section AUG of a config as recipes.

Bicubic pictures are clamped to [0, 1], as PIL's bytes are. Operations that there are not here (vertical flips, random
erasing, mirroring of what is only resized) are refused by name.
"""

from lowbit.config.keys.aug import Aug, AugEvaluation, AugTrain, Normalization
from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Channels, ColorJitter, Colour, Recipe
from lowbit.errors import InputError

CIFAR_SIDE, CIFAR_RESIZE, CIFAR_SCALE = 32, 36, (0.8, 1.0)


def aug_channels(aug: Aug, default: Channels) -> tuple[Channels, Channels]:
    """Mean and std (of training, of evaluation) as the section states them.

    Args:
        aug: the section; where evaluation has none, it has those of training.
        default: where training has none.
    """

    def stated(section: Normalization, default: Channels) -> Channels:
        if not section.MEAN:
            return default
        (r, g, b), (sr, sg, sb) = section.MEAN, section.STD
        return Channels((r, g, b), (sr, sg, sb))

    trained, evaluated = aug.TRAIN, aug.EVALUATION
    channels = stated(trained.NORMLIZATION, default)
    return channels, stated(evaluated.NORMLIZATION, channels)


def aug_recipes(aug: Aug, pictures: Pictures, side: int, default: Channels) -> tuple[Recipe, Recipe]:
    """(the picture that is trained on, the picture that is evaluated).

    Args:
        aug: the section.
        pictures: of either set; those in memory are of one size.
        side: height and width of what the net sees, in pixels.
        default: mean and std where the section states none.

    Raises:
        InputError: keys that do not go together, or that ask for what cannot be done here.
    """
    (train, shown), trained = aug_channels(aug, default), aug.TRAIN
    jitter = trained.COLOR_JITTER
    strengths = (jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE)
    colour: tuple[Colour, ...] = (ColorJitter(*strengths, p=jitter.PROB),) if jitter.PROB else ()
    geometry = _whole(aug.EVALUATION, pictures, side)
    return Recipe(train, _trained(trained, pictures, side), colour), Recipe(shown, geometry)


def cifar_recipes(train: Channels, shown: Channels) -> tuple[Recipe, Recipe]:
    """Of probes and fine-tuning on CIFAR: (the picture that is trained on, the picture that is evaluated).

    A crop of 80 to 100 % at 32 pixels and mirroring; resized to 36, and the middle 32. Both bicubic.

    Args:
        train: mean and std of training.
        shown: of evaluation.
    """
    crop = RandomResizedCrop(CIFAR_SIDE, CIFAR_SCALE, interpolation="bicubic")
    return Recipe(train, crop), Recipe(shown, ResizedCenterCrop(CIFAR_RESIZE, CIFAR_SIDE, "bicubic"))


def _trained(aug: AugTrain, pictures: Pictures, side: int) -> Geometry:
    for key, probability in (("VERTICAL_FLIP", aug.VERTICAL_FLIP.PROB), ("RANDOMERASE", aug.RANDOMERASE.PROB)):
        if probability:
            raise InputError(f"{aug.PATH}.{key}.PROB={probability}: there is no such operation here; give 0")
    steps = {
        "RANDOMRESIZEDCROP": aug.RANDOMRESIZEDCROP.ENABLE,
        "RANDOMCROP": aug.RANDOMCROP.ENABLE,
        "RESIZE": aug.RESIZE.ENABLE,
        "CENTERCROP": aug.CENTERCROP.ENABLE,
    }
    enabled = [key for key, wanted in steps.items() if wanted]
    if len(enabled) > 1 and enabled != ["RESIZE", "CENTERCROP"]:
        raise InputError(f"{aug.PATH}: {' and '.join(enabled)} are enabled, which do not go together; keep one of them")
    flip = aug.HORIZONTAL_FLIP.PROB
    if aug.RANDOMRESIZEDCROP.ENABLE:
        crop = aug.RANDOMRESIZEDCROP
        return RandomResizedCrop(side, crop.SCALE, interpolation=crop.INTERPOLATION, flip=flip)
    if aug.RANDOMCROP.ENABLE:
        return PaddedCrop(side, aug.RANDOMCROP.PADDING, flip)
    geometry = _whole(aug, pictures, side)
    if not flip:
        return geometry
    if isinstance(geometry, Keep):
        return PaddedCrop(side, 0, flip)
    raise InputError(
        f"{aug.PATH}.HORIZONTAL_FLIP.PROB={flip} with {' and '.join(enabled)}: what is only resized is not mirrored "
        "here; enable RANDOMRESIZEDCROP or RANDOMCROP instead, or give 0"
    )


def _whole(aug: AugTrain | AugEvaluation, pictures: Pictures, side: int) -> Geometry:
    """The picture without randomness: as it is, or by RESIZE and CENTERCROP."""
    path, own = aug.PATH, pictures.size if isinstance(pictures, MemoryPictures) else None
    resize, middle = aug.RESIZE, aug.CENTERCROP.ENABLE
    if resize.ENABLE:
        height, width = resize.SIZE
        if height != width or height < 1:
            raise InputError(f"{path}.RESIZE.SIZE={[height, width]}: give two equal sizes in pixels")
        if not middle and resize.KEEP_RATIO and (own is None or own[0] != own[1]):
            raise InputError(f"{path}.RESIZE leaves pictures of several shapes: enable {path}.CENTERCROP too")
        if not middle and height != side:
            raise InputError(f"{path}.RESIZE.SIZE={[height, width]} without CENTERCROP: the net sees {side}x{side}")
        return ResizedCenterCrop(height, side, resize.INTERPOLATION, squash=not resize.KEEP_RATIO)
    if own is None:
        raise InputError(f"{path} has no crop and no RESIZE, and files are of any size: enable RESIZE and CENTERCROP")
    if own == (side, side):
        return Keep()
    if middle and min(own) >= side:
        return ResizedCenterCrop(min(own), side)  # to its own size: only the middle is cut out
    raise InputError(
        f"the pictures are {own[0]}x{own[1]} and the net sees {side}x{side}: enable {path}.RESIZE with that SIZE"
    )
