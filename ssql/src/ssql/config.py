"""SSQL's tree of keys: the authors' YAML keys with their defaults, checked, and the few that are ours.

Cao, Sun, Huang, Wu, Zhou, "Synergistic Self-supervised and Quantization Learning", ECCV 2022 (arXiv 2207.05432).
The decisions that the paper leaves open are named options: `QUANT.W.SCALE`, `QUANT.W.GRID`, `QUANT.BN`,
`QUANT.SYNC_RANGES`, `QUANT.FP`, `QUANT.CALIBRATION.PICTURES`, `SSL.SETTING.OUTPUT_BN`, `TRAIN.OPTIMIZER.*`.

Deviations: choices are those of the working parts (no PERCENTILE or KL observer, no quantizer but `uniform`); an empty
`BIT_CONFIG` means the pins that `ssql.bit_policy` derives from the network, which are the authors' lists (theirs: none
are pinned).
"""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from lowbit.config.keys import quant, root, train
from lowbit.config.load import config_reader
from lowbit.config.tree import Node, leaves
from lowbit.config.values import AtLeastOne, Seed
from ssql.unused_keys import Command, unused_keys

SslType = Literal[
    "SimSiam", "BYOL", "MoCo", "SimCLR", "SSQL_SimSiam", "SSQL_BYOL", "SSQL_MoCo", "SSQL_SimCLR", "RSSQL_SimSiam"
]  # SSQL_SimCLR is ours
CRITERIA = {  # by the method's last name; the first is the one that belongs to it
    "SimSiam": ("CosineSimilarity", "CosineSimilarityv2"),
    "BYOL": ("CosineSimilarity", "CosineSimilarityv2"),
    "MoCo": ("CrossEntropy",),
    "SimCLR": ("InfoNCEv2",),
}


def _bit_range(value: tuple[int, int]) -> tuple[int, int]:
    if not 2 <= value[0] < value[1] <= 17:
        raise ValueError("should be (lowest, highest + 1) within 2 to 16 bits: 2 <= first < second <= 17")
    return value


BitRange = Annotated[tuple[int, int], AfterValidator(_bit_range)]


class WeightObserver(quant.Observer):
    """The range of weights: their largest magnitude, at each step."""

    NAME: Literal["MINMAX"] = "MINMAX"


class Weights(quant.Weights):
    """Weights. `BIT` holds in evaluation; pretraining draws from `BIT_RANGE`, its end excluded."""

    BIT_RANGE: BitRange = (2, 9)
    OBSERVER_METHOD: WeightObserver = WeightObserver()
    SCALE: Literal["detached", "differentiable"] = "detached"  # ours; the authors': differentiable
    GRID: Literal["half", "whole"] = "half"  # ours: the largest weight at 2^(b-1) - 1/2, the authors', or - 1


class Activations(quant.Activations):
    """Activations; bits as for `Weights`."""

    BIT_RANGE: BitRange = (4, 9)


class Calibration(quant.Calibration):
    """What ranges are found on before an evaluation at fixed bits."""

    PICTURES: AtLeastOne = 1024  # ours: of the training set, under the evaluation transform
    SEED: Seed = 0  # ours: which of them


class Quant(quant.Quant):
    """Which bits, where, and how. Bits 0: not quantized."""

    W: Weights = Weights()
    A: Activations = Activations()
    CALIBRATION: Calibration = Calibration()
    FP: Literal["float", "authors"] = "float"  # ours: "authors" keeps the pins (stem 8/8) at bits 0/0, as they do
    BN: Literal["shared", "float"] = "shared"  # ours: passes that running statistics follow: all, or float ones alone
    SYNC_RANGES: bool = True  # ours: ranges are those of all processes; the authors': of each


class Setting(root.Setting):
    """Heads and loss of a self-supervised method."""

    OUTPUT_BN: bool | None = None  # ours: batch norm at the projector's output; None: as the authors' TYPE has it
    NEGATIVES: Literal["local", "gathered"] = "local"  # ours: SimCLR's, of this process or of all
    PREDICTOR_LR: Literal["scheduled", "fixed"] = "scheduled"  # ours: "fixed" as in the SimSiam paper


class Ssl(Node):
    """The self-supervised method."""

    TYPE: SslType | None = None
    SETTING: Setting = Setting()


class Criterion(train.Criterion):
    """The loss; "" is the one that belongs to `SSL.TYPE`."""

    NAME: Literal["", "CosineSimilarity", "CosineSimilarityv2", "InfoNCEv2", "CrossEntropy"] = ""


class Loss(train.Loss):
    """The criterion and what is added to it."""

    CRITERION: Criterion = Criterion()


class Train(train.Train):
    """How long, on what, and with which optimizer."""

    LOSS: Loss = Loss()


class Config(root.Root):
    """The whole tree."""

    TRAIN: Train = Train()
    QUANT: Quant = Quant()
    SSL: Ssl = Ssl()

    @property
    def method(self) -> str:
        """The last name of `SSL.TYPE`, such as SimSiam; "" without one."""
        return (self.SSL.TYPE or "").rpartition("_")[2]

    @property
    def criterion(self) -> str:
        """The loss's name in the log."""
        return self.TRAIN.LOSS.CRITERION.NAME or CRITERIA[self.method][0]

    @property
    def has_fixed_transforms(self) -> bool:
        """Whether evaluation shows pictures in the one way that the authors' program has for this net and dataset."""
        return self.MODEL.ARCH.startswith("cifar_") and self.TRAIN.DATASET in ("cifar10", "cifar100")

    @model_validator(mode="after")
    def _criterion_fits(self) -> Self:
        name = self.TRAIN.LOSS.CRITERION.NAME
        allowed = CRITERIA.get(self.method, (name,))
        if name and name not in allowed:
            raise ValueError(
                f"TRAIN.LOSS.CRITERION.NAME={name!r} does not belong to SSL.TYPE={self.SSL.TYPE!r}; "
                f"allowed: {', '.join(allowed)}"
            )
        return self


def schedule_name(command: Command, config: Config, sched: str | None = None) -> str:
    """What `--sched` says, else what the authors' command follows: "cosine" or "step"."""
    return sched or ("cosine" if command == "ssl" or config.TRAIN.LR_SCHEDULER.TYPE == "cosine" else "step")


def without_effect(command: Command, config: Config, sched: str | None = None) -> set[str]:
    """Keys, and whole sections, that `command` does not read under this config and `--sched`."""
    return unused_keys(
        command, tuple(leaves(Config)), kind=config.SSL.TYPE, probe=config.TRAIN.LINEAR_EVAL,
        cosine=schedule_name(command, config, sched) == "cosine", fixed_transforms=config.has_fixed_transforms,
    )  # fmt: skip


read_config = config_reader(Config, "ssql", without_effect)
