"""The section TRAIN, as methods with a YAML config share it."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lowbit.config.tree import Node
from lowbit.config.values import Amount, AtLeastOne, Count, Fraction, Positive, Workers, ascending

BATCH = ("TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH")  # pictures of a process, and of a step of all
Dataset = Literal[
    "cifar10", "cifar100", "imagenet", "tiny-imagenet", "folder", "digits",
    "aircraft", "caltech101", "dtd", "flowers", "food101", "pets",
]  # fmt: skip


class LrScheduler(Node):
    """Learning rate by epoch: `cosine` to 0, or `multiStep`, times 0.1 at each milestone."""

    TYPE: Literal["cosine", "multiStep"] | None = None
    WARMUP_EPOCHS: Count = 0
    WARMUP_LR: Amount = 0
    BASE_LR: Amount = 0  # the full rate
    FC_LR: Any = 0
    MIN_LR: Amount = 0
    SPECIFIC_LRS: Any = ()
    DECAY_MILESTONES: Annotated[tuple[Count, ...], AfterValidator(ascending)] = ()  # epochs
    DECAY_EPOCH: Count = 0
    DECAY_RATE: Amount = 0.1


class Optimizer(Node):
    """`sgd`, or `lars` for the ImageNet probes."""

    NAME: Literal["", "sgd", "lars", "adamw"] = ""  # adamw is ours
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
    SYNC_BN: bool = False  # batch norm over all processes
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
    NUM_WORKERS: Workers = 0  # processes that read pictures: the same as --workers
    PRINT_FREQ: AtLeastOne = 1  # steps between log lines: the same as --print-freq
    LR_SCHEDULER: LrScheduler = LrScheduler()
    OPTIMIZER: Optimizer = Optimizer()
    LOSS: Loss = Loss()
    RUNNER: Runner = Runner()
    METER: Meter = Meter()
