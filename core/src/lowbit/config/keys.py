"""The sections MODEL, TRAIN, AUG and SSL.SETTING that methods with a YAML config share; a method adds its own keys.

Names, odd spellings (`NORMLIZATION`) included, and defaults are the authors'; comments mark the keys that are ours.
A method's tree is a subclass of `Root` with its own sections, and with subclasses of these where they have more keys
(`class Train(keys.Train): DROP_LAST: bool = False`) or fewer values (`NAME: Literal["a", "b"]` for a `str`).
No other file of this package holds a path of keys.
"""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from lowbit.config.tree import Node
from lowbit.config.values import Amount, AtLeastOne, Count, Fraction, Positive, Share, Size, ascending
from lowbit.errors import InputError

EXAMPLE = "TRAIN.EPOCHS=100"  # of an argument
BATCH = ("TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH")  # pictures of a process, and of a step of all
MAY_DIFFER = {  # when a run is resumed, or the loop compares them itself
    "OUTPUT", "SEED", "MODEL.CHECKPOINT", "MODEL.PRETRAINED", "TRAIN.EPOCHS", "TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH",
    "TRAIN.NUM_WORKERS", "TRAIN.PRINT_FREQ",
}  # fmt: skip
Interpolation = Literal["bilinear", "bicubic"]
Dataset = Literal[
    "cifar10", "cifar100", "imagenet", "tiny-imagenet", "folder", "digits",
    "aircraft", "caltech101", "dtd", "flowers", "food101", "pets",
]  # fmt: skip


class Model(Node):
    """The net and where its weights come from."""

    ARCH: str = ""  # timm's name
    CHECKPOINT: str = ""  # of a run to resume: the same as --resume
    PRETRAINED: str = ""  # weights to start from or to evaluate
    NUM_CLASSES: Count = 0
    INPUTSHAPE: Size = (-1, -1)

    @property
    def side(self) -> int | None:
        """Height and width of what the net sees, in pixels; None: not stated.

        Raises:
            InputError: not square.
        """
        height, width = self.INPUTSHAPE
        if height != width:
            raise InputError(f"MODEL.INPUTSHAPE={[height, width]}: views are square, give two equal sizes")
        return height if height > 0 else None

    def classes(self, dataset: str, found: int) -> int:
        """The classes of a dataset, which `NUM_CLASSES` may state.

        Raises:
            InputError: it states another number.
        """
        if self.NUM_CLASSES not in (0, found):
            raise InputError(f"MODEL.NUM_CLASSES={self.NUM_CLASSES}: {dataset} has {found} classes; give that, or 0")
        return found


class LrScheduler(Node):
    """Learning rate by epoch: `cosine` to 0, or `multiStep`, times 0.1 at each milestone."""

    TYPE: Literal["cosine", "multiStep"] | None = None
    WARMUP_EPOCHS: Count = 0
    WARMUP_LR: Amount = 0
    BASE_LR: Amount = 0
    FC_LR: Any = 0
    MIN_LR: Amount = 0
    SPECIFIC_LRS: Any = ()
    DECAY_MILESTONES: Annotated[tuple[Count, ...], AfterValidator(ascending)] = ()
    DECAY_EPOCH: Count = 0
    DECAY_RATE: Amount = 0.1


class Optimizer(Node):
    """`sgd`, or `lars` for the ImageNet probes; pretraining is always SGD."""

    NAME: Literal["", "sgd", "lars"] = ""
    EPS: Amount | None = None
    BETAS: tuple[Fraction, Fraction] | None = None
    MOMENTUM: Annotated[float, Field(ge=0, lt=1)] = 0
    WEIGHT_DECAY: Amount = 0
    DECAY_NORM_AND_BIAS: bool = True  # ours: False leaves batch norm and biases out of the weight decay


class Lploss(Node):
    """Of the authors' reconstruction losses."""

    P: Positive = 2.0
    REDUCTION: str = "none"


class Criterion(Node):
    """The loss; "" is the one that belongs to `SSL.TYPE`. Each method has its own names."""

    NAME: str = ""
    LPLOSS: Lploss = Lploss()


class Regularizer(Node):
    """None of the authors' files uses one."""

    NAME: str = ""


class Loss(Node):
    """The criterion and what is added to it."""

    LAMBDA: Amount = 0
    CRITERION: Criterion = Criterion()
    REGULARIZER: Regularizer = Regularizer()


class Runner(Node):
    """Which of the authors' training classes; here the command decides."""

    NAME: Literal["", "default", "ssl"] = ""


class Acc(Node):
    """Which accuracies; here top-1 and top-5."""

    TOPK: tuple[AtLeastOne, ...] = ()


class Meter(Node):
    """Which figures the authors' log shows."""

    NAME: Literal["", "average", "ACC", "DISP"] = ""
    ACC: Acc = Acc()
    MAP: Any = {}  # noqa: RUF012  # pydantic copies defaults
    MIOU: Any = {}  # noqa: RUF012


class Train(Node):
    """How long, on what, and with which optimizer."""

    USE_DDP: bool = False
    SYNC_BN: bool = False
    LINEAR_EVAL: bool = False  # `linear`: True trains a probe, False fine-tunes
    WARMUP_FC: bool = False  # fine-tuning starts from a probe's checkpoint
    RESUME: Any = ""
    EPOCHS: Count = 0
    START_EPOCH: Count = 0
    PRETRAIN: Any = ""
    DATASET: Literal["", Dataset] = ""
    LABEL_SMOOTHING: Fraction = 0
    BATCH_SIZE: AtLeastOne = 1  # per process
    GLOBAL_BATCH: AtLeastOne | None = None  # ours: pictures per optimizer step that the learning rate was chosen for
    NUM_WORKERS: Count = 0
    PRINT_FREQ: AtLeastOne = 1
    LR_SCHEDULER: LrScheduler = LrScheduler()
    OPTIMIZER: Optimizer = Optimizer()
    LOSS: Loss = Loss()
    RUNNER: Runner = Runner()
    METER: Meter = Meter()


class RandomResizedCrop(Node):
    """A crop of a random share of the area, resized to `INPUTSHAPE`."""

    ENABLE: bool = False
    SCALE: Annotated[tuple[Share, Share], AfterValidator(ascending)] = (0.08, 1.0)
    INTERPOLATION: Interpolation = "bilinear"


class Resize(Node):
    """To `SIZE`; with `KEEP_RATIO` the shorter side only."""

    ENABLE: bool = False
    SIZE: Size = (-1, -1)
    KEEP_RATIO: bool = True
    INTERPOLATION: Interpolation = "bilinear"


class Flip(Node):
    """Mirrored with this probability."""

    PROB: Fraction = 0


class RandomCrop(Node):
    """A crop of `INPUTSHAPE` after zero padding."""

    ENABLE: bool = False
    PADDING: Count = 0


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
    MAX_COUNT: AtLeastOne | None = None


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


class Setting(Node):
    """Heads and loss of a self-supervised method."""

    DIM: AtLeastOne = 128
    HIDDEN_DIM: AtLeastOne = 2048
    T: Positive = 0.07
    MOCO_K: AtLeastOne = 65536
    MOMENTUM: Fraction = 0.999  # of the momentum copy
    MLP: bool = True  # a hidden layer in the projector


class Root(Node):
    """The keys that stand in no section, and the shared sections; `BASE_CONFIG` belongs to the files."""

    DEVICE: Any = None
    RANK: Any = 0
    WORLD_SIZE: Any = 1
    LOCAL_RANK: Any = 0
    SEED: Count | None = None
    OUTPUT: str = ""
    EVALUATOR: Any = ""
    EVALUATION_DOMAIN: Any = None
    MODEL: Model = Model()
    TRAIN: Train = Train()
    AUG: Aug = Aug()

    def check_training(self) -> None:
        """Refuse a training of no net, on nothing, or for no epoch.

        Raises:
            InputError: a key that has to be set and is not.
        """
        for key, value in (("MODEL.ARCH", self.MODEL.ARCH), ("TRAIN.DATASET", self.TRAIN.DATASET)):
            if not value:
                raise InputError(f"{key} is empty: name it in the config, or as {key}=NAME after the command")
        if self.TRAIN.EPOCHS < 1:
            raise InputError(f"TRAIN.EPOCHS={self.TRAIN.EPOCHS}: give 1 or more")
