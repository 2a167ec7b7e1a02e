"""US3L's tree of keys: the authors' YAML keys with their defaults, checked, and the few that are ours.

Cao, Sun, Zhou, "Three Guidelines You Should Know for Universally Slimmable Self-Supervised Learning", CVPR 2023 (arXiv
2303.06870). Deviations: choices are those of the working parts. `US_SimSiam`, which no class of theirs has, is SimSiam.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lowbit.config.keys import quant, root, train
from lowbit.config.load import config_reader
from lowbit.config.tree import Node
from lowbit.config.values import Amount, AtLeastOne, Count, Fraction, HeadWidth, Positive, Share, UserPath, ascending
from lowbit.errors import InputError
from lowbit.slim.widths import Width
from us3l.names import METHODS, Method, Net, net_of
from us3l.sampling import Sampling
from us3l.unused_keys import without_effect

SslType = Literal[
    "SimCLR", "SimCLR_Momentum", "BYOL", "SimSiam", "US_SimSiam", "SimSiam_Momentum", "MoCo", "MoCo_v3",
    "SEED", "SEED_MSE", "SEED_SimCLR",
]  # fmt: skip
TRANSFER = ("aircraft", "caltech101", "dtd", "flowers", "food101", "pets")
LIST = tuple(round(0.25 + 0.025 * i, 3) for i in range(31))


def _distinct(value: tuple[Any, ...]) -> tuple[Any, ...]:
    if not value or len({f"{one:g}" if isinstance(one, float) else one for one in value}) < len(value):
        raise ValueError("should hold one entry or more, each once")
    return value


class Ofa(Node):
    """Widths: which are trained, what sub-networks learn from, group regularization, batch-norm statistics."""

    WIDTH_MULT: Share = 1.0  # trained where NUM_SAMPLE_TRAINING is 1, and evaluated
    WIDTH_BY_LAYER: dict[str, Share] = {}  # ours: in `linear` and `calibrate`, by convolution  # noqa: RUF012
    WIDTH_MULT_RANGE: Annotated[tuple[Share, Share], AfterValidator(ascending)] = (0.25, 1.0)
    NUM_SAMPLE_TRAINING: Annotated[int, Field(ge=1, le=64)] = 1  # widths of a step, the largest and smallest included
    SANDWICH: bool = True  # the largest and the smallest are among them
    SAMPLE_SCHEDULER: Literal["", "A"] = ""  # A: stage by stage from 1.0 alone down to the whole range
    MOMENTUM_UPDATE: bool = True  # also before each further pass, whose head is then the base one
    STEP_PER: Literal["width", "batch"] = "width"  # ours: batch accumulates the gradients of all widths
    DISTILL: bool = True
    DISTILL_CRITERION: Literal[
        "CosineSimilarity", "CosineSimilarityv2", "InfoNCEv2", "InfoNCEv2_distill", "InfoNCE", "MSELoss"
    ] = "CosineSimilarity"  # fmt: skip
    DISTILL_LAMBDA: Amount = 1.0
    DISTILL_STUDENT_TEMP: Positive = 1.0
    DISTILL_TEACHER_TEMP: Positive = 1.0
    DISTILL_FEATURE: bool = False
    DISTILL_FEATURE_CRITERION: Literal["", "MSELoss", "CosineSimilarity", "AMSELoss"] = ""  # AMSELoss is not here
    DISTILL_FEATURE_LAMBDA: Amount = 1.0
    DISTILL_FEATURE_NAME: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ("layer3.0.bn2",)
    DISTILL_FEATURE_DIM: tuple[AtLeastOne, ...] = (256,)
    REGULARIZER: bool = False  # instead of weight decay
    REGULARIZER_CRITERION: Literal["L2Reg", "GroupReg"] = "L2Reg"
    REGULARIZER_LAMBDA: Amount = 5e-4  # half the weight decay that it stands for
    REGULARIZER_L1_LAMBDA: Any = 0
    REGULARIZER_DECAY_ALPHA: Fraction = 0.2
    REGULARIZER_DECAY_TYPE: Literal["exp", "linear"] = "exp"
    REGULARIZER_DECAY_BINS: AtLeastOne = 4
    REGULARIZER_WARMUP_EPOCHS: Count = 0
    USE_SLIMMABLE: bool = False  # the widths are those of the list
    WIDTH_MULT_LIST: Annotated[tuple[Share, ...], AfterValidator(_distinct)] = LIST
    CALIBRATE_BN: bool = False
    CALIBRATION_PICTURES: AtLeastOne = 1024  # ours: of the training set, that statistics are re-estimated on
    BN_CAL_BATCH_NUM: Any = 5
    CUMULATIVE_BN_STATS: Any = True
    BN_TRACK_STATS: Any = False


class Model(root.Model):
    """The net, its weights and its widths."""

    OFA: Ofa = Ofa()

    @property
    def net(self) -> Net:
        """What `ARCH` names."""
        return net_of(self.ARCH)


class Criterion(train.Criterion):
    """The base loss; "" is the one that belongs to `SSL.TYPE`."""

    NAME: Literal[
        "", "CosineSimilarity", "CosineSimilarityv2", "InfoNCEv2", "InfoNCEv2_distill", "InfoNCE", "MSELoss",
        "CrossEntropy", "soft_distill",
    ] = ""  # fmt: skip


class Loss(train.Loss):
    """The criterion."""

    CRITERION: Criterion = Criterion()


class Train(train.Train):
    """How long, on what, and with which optimizer."""

    USE_AMP: bool = False  # half precision on a GPU: --mixed-precision fp16
    DROP_LAST: bool = False
    LOSS: Loss = Loss()


class Prune(Node):
    """A baseline that is not here: filters left out by their norm."""

    ENABLE_PRUNE: bool = False
    TYPE: Any = "structed"
    STRATEGY: Any = ""
    GLOBAL_FACTOR: Any = 1.0
    ENABLE_RETRAIN: Any = False
    GRANULARITY: Any = "channelwise"
    RETRAIN_GRANULARITY: Any = "model"
    PRUNE_NUM: Any = ()
    PRUNE_PROB: Any = ()
    SLIMMING_FACTOR: Any = 0


class Distill(Node):
    """The frozen teacher of the SEED methods; its heads as `SSL.SETTING` has the student's."""

    TEACHER_ARCH: str = ""
    TEACHER_PRETRAINED: UserPath = ""
    TEACHER_DIM: HeadWidth = 128
    TEACHER_HIDDEN_DIM: HeadWidth = 2048


class Setting(root.Setting):
    """Heads and loss of a self-supervised method."""

    MLP: bool = True  # MoCo: a hidden layer in the projector; all others have three layers and refuse False
    PREDICTOR: bool = True  # SimCLR: sub-networks have a distillation head
    NEW_DISTILL_HEAD: bool = True  # BYOL, SimSiam_Momentum: sub-networks have a predictor of their own
    MOMENTUM_COSINE: bool = False  # ours: the momentum rises to 1 along a cosine


class Ssl(Node):
    """The self-supervised method."""

    TYPE: SslType | None = None
    SETTING: Setting = Setting()


class Config(root.Root):
    """The whole tree."""

    MODEL: Model = Model()
    TRAIN: Train = Train()
    QUANT: quant.Quant = quant.Quant()
    PRUNE: Prune = Prune()
    DISTILL: Distill = Distill()
    SSL: Ssl = Ssl()

    def check_training(self) -> None:
        """Also refuse the pruning baseline and the transfer sets, which are not here.

        Raises:
            InputError: see there.
        """
        super().check_training()
        if self.PRUNE.ENABLE_PRUNE or self.MODEL.ARCH.startswith("usprune_"):
            raise InputError("PRUNE.ENABLE_PRUNE: the pruning baseline is not here: leave it out, and name an us_ net")
        if self.TRAIN.DATASET in TRANSFER:
            raise InputError(
                f"TRAIN.DATASET={self.TRAIN.DATASET}: the authors' program fails on transfer sets, which are not here "
                "by name; give TRAIN.DATASET=folder and --data DIR with train/<class>/* and val/<class>/*"
            )

    @property
    def sampling(self) -> Sampling:
        """The widths of a step."""
        ofa = self.MODEL.OFA
        if ofa.USE_SLIMMABLE or ofa.NUM_SAMPLE_TRAINING == 1:
            return Sampling(fixed=ofa.WIDTH_MULT_LIST if ofa.USE_SLIMMABLE else (ofa.WIDTH_MULT,))
        return Sampling(*ofa.WIDTH_MULT_RANGE, ofa.NUM_SAMPLE_TRAINING, ofa.SANDWICH, ofa.SAMPLE_SCHEDULER)

    @property
    def width(self) -> Width:
        """What `linear` evaluates."""
        return self.MODEL.OFA.WIDTH_BY_LAYER or self.MODEL.OFA.WIDTH_MULT

    @property
    def several(self) -> bool:
        """Whether a step trains more than one width."""
        return len(self.sampling.fixed) != 1

    @property
    def distils(self) -> bool:
        """Whether narrower passes learn from the widest one's target."""
        return self.several and self.MODEL.OFA.DISTILL

    def trained_widths(self, labels: bool = False) -> tuple[float, ...]:
        """One, a list, or both ends of a range; with `labels` a switchable net has those of its list."""
        listed = labels and self.MODEL.net.kind == "switchable"
        return self.MODEL.OFA.WIDTH_MULT_LIST if listed else self.sampling.trained(self.TRAIN.EPOCHS)

    @property
    def criterion(self) -> str:
        """The base loss's name; "" without a method."""
        return self.TRAIN.LOSS.CRITERION.NAME or self.known.criteria[0]

    @property
    def schedule(self) -> str:
        """Of the learning rate: "cosine" or "step"."""
        return "cosine" if self.TRAIN.LR_SCHEDULER.TYPE == "cosine" else "step"

    @property
    def known(self) -> Method:
        """What is known of the method; of none nothing."""
        return METHODS.get(self.method, Method(("",)))

    @property
    def method(self) -> str:
        """`SSL.TYPE`, its missing class replaced; "" without one."""
        return {"US_SimSiam": "SimSiam", None: ""}.get(self.SSL.TYPE, self.SSL.TYPE or "")


read_config = config_reader(Config, "us3l", without_effect)
