"""The section AUG: how a picture is prepared; a section knows its own path, for messages."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowbit.config.tree import Node
from lowbit.config.values import Amount, Fraction, HeightWidth, Pixels, Positive, Share, ascending

Interpolation = Literal["bilinear", "bicubic"]


class RandomResizedCrop(Node):
    """A crop of a random share of the area, resized to `INPUTSHAPE`."""

    ENABLE: bool = False
    SCALE: Annotated[tuple[Share, Share], AfterValidator(ascending)] = (0.08, 1.0)
    INTERPOLATION: Interpolation = "bilinear"


class Resize(Node):
    """To `SIZE`; with `KEEP_RATIO` the shorter side only."""

    ENABLE: bool = False
    SIZE: HeightWidth = (-1, -1)
    KEEP_RATIO: bool = True
    INTERPOLATION: Interpolation = "bilinear"


class Flip(Node):
    """Mirrored with this probability."""

    PROB: Fraction = 0


class RandomCrop(Node):
    """A crop of `INPUTSHAPE` after zero padding."""

    ENABLE: bool = False
    PADDING: Pixels = 0


class CenterCrop(Node):
    """A crop of `INPUTSHAPE` from the middle."""

    ENABLE: bool = False


class ColorJitter(Node):
    """Strengths as torchvision means them."""

    PROB: Fraction = 0
    BRIGHTNESS: Amount = 0.4
    CONTRAST: Amount = 0.4
    SATURATION: Amount = 0.2
    HUE: Annotated[float, Field(ge=0, le=0.5)] = 0.1


class RandomErase(Node):
    """As timm means it."""

    PROB: Fraction = 0
    MODE: Literal["const", "rand", "pixel"] = "const"
    MAX_COUNT: Annotated[int, Field(ge=1, le=100)] | None = None


class Mix(Node):
    """Mixup and CutMix as timm means them."""

    PROB: Fraction = 0
    MODE: Literal["batch", "pair", "elem"] = "batch"
    SWITCH_MIXUP_CUTMIX_PROB: Fraction = 0
    MIXUP_ALPHA: Amount = 0
    CUTMIX_ALPHA: Amount = 0
    CUTMIX_MIXMAX: tuple[Fraction, Fraction] | None = None


class Normalization(Node):
    """Mean and standard deviation per channel, of values in [0, 1]; empty: the dataset's."""

    MEAN: tuple[Fraction, ...] = ()
    STD: tuple[Positive, ...] = ()

    @model_validator(mode="after")
    def _fit(self) -> Self:
        if len(self.MEAN) != len(self.STD) or len(self.MEAN) not in (0, 3):
            raise ValueError(f"MEAN={list(self.MEAN)} and STD={list(self.STD)} should hold 3 numbers each, or none")
        return self


class AutoAugment(Node):
    """Never built by the authors."""

    ENABLE: Any = False
    POLICY: Any = 0


class AugTrain(Node):
    """How a picture is shown to what is trained with labels; pretraining has views of its own."""

    PATH: ClassVar[str] = "AUG.TRAIN"
    RANDOMRESIZEDCROP: RandomResizedCrop = RandomResizedCrop()
    RESIZE: Resize = Resize()
    HORIZONTAL_FLIP: Flip = Flip()
    VERTICAL_FLIP: Flip = Flip()
    RANDOMCROP: RandomCrop = RandomCrop()
    CENTERCROP: CenterCrop = CenterCrop()
    COLOR_JITTER: ColorJitter = ColorJitter()
    AUTO_AUGMENT: AutoAugment = AutoAugment()
    RANDOMERASE: RandomErase = RandomErase()
    MIX: Mix = Mix()
    NORMLIZATION: Normalization = Normalization()


class AugEvaluation(Node):
    """The transform of an evaluated picture."""

    PATH: ClassVar[str] = "AUG.EVALUATION"
    RESIZE: Resize = Resize()
    CENTERCROP: CenterCrop = CenterCrop()
    NORMLIZATION: Normalization = Normalization()


class Aug(Node):
    """Of training and of evaluation."""

    TRAIN: AugTrain = AugTrain()
    EVALUATION: AugEvaluation = AugEvaluation()
