"""How `linear`, `default` and what judges a net show pictures: the sections AUG.TRAIN and AUG.EVALUATION as recipes.

CIFAR pictures on the `cifar_` nets have the authors' own transforms, whatever AUG says: a crop of 80 to 100 % resized
to 32 (bicubic) and mirroring; evaluation resizes to 36 (bicubic) and shows the middle 32.

Deviation from the authors' program: bicubic pictures are clamped to [0, 1], as PIL's bytes are. Operations that the
house does not have (vertical flips, random erasing, mirroring of what is only resized) are refused by name.
"""

from lowbit.config.keys import AugEvaluation, AugTrain
from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import ColorJitter, Colour, Recipe
from lowbit.errors import InputError
from ssql.config import Config
from ssql.views import channels_of

CIFAR_SIDE, CIFAR_RESIZE, CIFAR_SCALE = 32, 36, (0.8, 1.0)


def recipes(config: Config, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """(the picture that is trained on, the picture that is evaluated).

    Args:
        config: of the command.
        pictures: of either set; those in memory are of one size.
        side: height and width of what the net sees, in pixels (`ssql.views.side_of`).

    Raises:
        InputError: keys that do not go together, or that ask for what cannot be done here.
    """
    train, shown = channels_of(config), channels_of(config, evaluation=True)
    if config.has_fixed_transforms:
        if side != CIFAR_SIDE:
            raise InputError(f"MODEL.INPUTSHAPE: the cifar_ nets are shown CIFAR at {CIFAR_SIDE} pixels, not {side}")
        crop = RandomResizedCrop(side, CIFAR_SCALE, interpolation="bicubic")
        return Recipe(train, crop), Recipe(shown, ResizedCenterCrop(CIFAR_RESIZE, side, "bicubic"))
    jitter = config.AUG.TRAIN.COLOR_JITTER
    strengths = (jitter.BRIGHTNESS, jitter.CONTRAST, jitter.SATURATION, jitter.HUE)
    colour: tuple[Colour, ...] = (ColorJitter(*strengths, p=jitter.PROB),) if jitter.PROB else ()
    geometry = _whole(config.AUG.EVALUATION, "AUG.EVALUATION", pictures, side)
    return Recipe(train, _trained(config.AUG.TRAIN, pictures, side), colour), Recipe(shown, geometry)


def is_random(recipe: Recipe) -> bool:
    """Whether a picture looks different each time."""
    return bool(recipe.colour) or not isinstance(recipe.geometry, Keep | ResizedCenterCrop)


def _trained(aug: AugTrain, pictures: Pictures, side: int) -> Geometry:
    for key, probability in (("VERTICAL_FLIP", aug.VERTICAL_FLIP.PROB), ("RANDOMERASE", aug.RANDOMERASE.PROB)):
        if probability:
            raise InputError(f"AUG.TRAIN.{key}.PROB={probability}: there is no such operation here; give 0")
    steps = {
        "RANDOMRESIZEDCROP": aug.RANDOMRESIZEDCROP.ENABLE,
        "RANDOMCROP": aug.RANDOMCROP.ENABLE,
        "RESIZE": aug.RESIZE.ENABLE,
        "CENTERCROP": aug.CENTERCROP.ENABLE,
    }
    enabled = [key for key, wanted in steps.items() if wanted]
    if len(enabled) > 1 and enabled != ["RESIZE", "CENTERCROP"]:
        raise InputError(f"AUG.TRAIN: {' and '.join(enabled)} are enabled, which do not go together; keep one of them")
    flip = aug.HORIZONTAL_FLIP.PROB
    if aug.RANDOMRESIZEDCROP.ENABLE:
        crop = aug.RANDOMRESIZEDCROP
        return RandomResizedCrop(side, crop.SCALE, interpolation=crop.INTERPOLATION, flip=flip)
    if aug.RANDOMCROP.ENABLE:
        return PaddedCrop(side, aug.RANDOMCROP.PADDING, flip)
    geometry = _whole(aug, "AUG.TRAIN", pictures, side)
    if not flip:
        return geometry
    if isinstance(geometry, Keep):
        return PaddedCrop(side, 0, flip)
    raise InputError(
        f"AUG.TRAIN.HORIZONTAL_FLIP.PROB={flip} with {' and '.join(enabled)}: what is only resized is not mirrored "
        "here; enable RANDOMRESIZEDCROP or RANDOMCROP instead, or give 0"
    )


def _whole(aug: AugTrain | AugEvaluation, path: str, pictures: Pictures, side: int) -> Geometry:
    """The picture without randomness: as it is, or by RESIZE and CENTERCROP."""
    own = pictures.size if isinstance(pictures, MemoryPictures) else None
    resize, middle = aug.RESIZE, aug.CENTERCROP.ENABLE
    if resize.ENABLE:
        height, width = resize.SIZE
        if height != width or height < 1:
            raise InputError(f"{path}.RESIZE.SIZE={[height, width]}: give two equal sizes in pixels")
        if not middle and resize.KEEP_RATIO and (own is None or own[0] != own[1]):
            raise InputError(f"{path}.RESIZE leaves pictures of several shapes: enable {path}.CENTERCROP too")
        if not middle and height != side:
            raise InputError(
                f"{path}.RESIZE.SIZE={[height, width]} without CENTERCROP: the net sees MODEL.INPUTSHAPE={[side, side]}"
            )
        return ResizedCenterCrop(height, side, resize.INTERPOLATION, squash=not resize.KEEP_RATIO)
    if own is None:
        raise InputError(f"{path} has no crop and no RESIZE, and files are of any size: enable RESIZE and CENTERCROP")
    if own == (side, side):
        return Keep()
    if middle and min(own) >= side:
        return ResizedCenterCrop(min(own), side)  # to its own size: only the middle is cut out
    raise InputError(
        f"the pictures are {own[0]}x{own[1]} and MODEL.INPUTSHAPE={[side, side]}: enable {path}.RESIZE with that SIZE"
    )
