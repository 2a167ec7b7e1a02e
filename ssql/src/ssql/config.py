"""SSQL's tree of keys: the authors' YAML keys with their defaults, checked, and the few that are ours.

Cao, Sun, Huang, Wu, Zhou, "Synergistic Self-supervised and Quantization Learning", ECCV 2022 (arXiv 2207.05432).
The decisions that the paper leaves open are named options: `QUANT.W.SCALE`, `QUANT.W.GRID`, `QUANT.BN`,
`QUANT.SYNC_RANGES`, `QUANT.FP`, `QUANT.CALIBRATION.PICTURES`, `SSL.SETTING.OUTPUT_BN`, `TRAIN.OPTIMIZER.*`.

Deviations: choices are those of the working parts (no PERCENTILE or KL observer, no quantizer but `uniform`); an empty
`BIT_CONFIG` means the pins that `ssql.bits` derives from the network, which are the authors' lists.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from lowbit.config.tree import Node, load_config
from ssql.idle import Command, without_effect
from ssql.keys import Amount, AtLeastOne, Aug, BitRange, Bits, Count, Fraction, Model, Positive, Train

SslType = Literal[
    "SimSiam", "BYOL", "MoCo", "SimCLR", "SSQL_SimSiam", "SSQL_BYOL", "SSQL_MoCo", "SSQL_SimCLR", "RSSQL_SimSiam"
]  # SSQL_SimCLR is ours
CRITERIA = {  # by the method's last name; the first is the one that belongs to it
    "SimSiam": ("CosineSimilarity", "CosineSimilarityv2"),
    "BYOL": ("CosineSimilarity", "CosineSimilarityv2"),
    "MoCo": ("CrossEntropy",),
    "SimCLR": ("InfoNCEv2",),
}


class Observer(Node):
    """How ranges are found: running extremes, their moving average, least error, or mean -/+ 2 std."""

    NAME: Literal["MINMAX", "MOMENTUM_MINMAX", "MSE", "HISTOGRAM", "GAUSSIAN"] = "MINMAX"
    ALPHA: Amount = 1e-4
    BINS: AtLeastOne = 2049


class Weights(Node):
    """Weights: symmetric. `BIT` holds in evaluation; pretraining draws from `BIT_RANGE`, its end excluded."""

    QUANTIZER: Literal["uniform"] | None = None  # None: uniform, where anything is quantized
    BIT: Bits = 8
    BIT_RANGE: BitRange = (2, 9)
    SYMMETRY: Literal[True] = True
    GRANULARITY: Literal["channelwise", "layerwise"] = "channelwise"
    OBSERVER_METHOD: Observer = Observer()
    SCALE: Literal["detached", "differentiable"] = "detached"  # ours; the authors': differentiable
    GRID: Literal["half", "whole"] = "half"  # ours: the largest weight at 2^(b-1) - 1/2, the authors', or - 1


class Activations(Node):
    """Activations: asymmetric, one scale a tensor; otherwise as `Weights`."""

    QUANTIZER: Literal["uniform"] | None = None
    BIT: Bits = 8
    BIT_RANGE: BitRange = (4, 9)
    SYMMETRY: Literal[False] = False
    GRANULARITY: Literal["layerwise"] = "layerwise"
    OBSERVER_METHOD: Observer = Observer()


class Limitation(Node):
    """Of HAWQ's choice of bits."""

    BIT_ASCEND_SORT: Any = False
    BIT_WIDTH_COEFF: Any = 1e10
    BOPS_COEFF: Any = 1e10


class Hawq(Node):
    """Bits by Hessian; broken in the authors' program."""

    EIGEN_TYPE: Any = "avg"
    SENSITIVITY_CALC_ITER_NUM: Any = 50
    LIMITATION: Limitation = Limitation()


class BitAssigner(Node):
    """Bits by layer; no command of the authors' calls it."""

    NAME: Any = None
    W_BIT_CHOICES: Any = (2, 4, 8)
    A_BIT_CHOICES: Any = (2, 4, 8, 16)
    HAWQ: Hawq = Hawq()


class Calibration(Node):
    """What ranges are found on before an evaluation at fixed bits."""

    PATH: str = ""
    TYPE: str = ""
    MODULE_PATH: str = ""
    SIZE: Count = 0
    BATCHSIZE: AtLeastOne = 1
    NUM_WORKERS: Count = 0
    PICTURES: AtLeastOne = 1024  # ours: of the training set, under the evaluation transform
    SEED: Count = 0  # ours: which of them


class Brecq(Node):
    """Of the authors' reconstruction."""

    KEEP_GPU: Any = True


class Finetune(Node):
    """Reconstruction after calibration; no command of the authors' calls it."""

    ENABLE: Any = False
    METHOD: Any = ""
    BATCHSIZE: Any = 32
    ITERS_W: Any = 0
    ITERS_A: Any = 0
    BRECQ: Brecq = Brecq()


class Quant(Node):
    """Which bits, where, and how. Bits 0: not quantized."""

    TYPE: Literal["", "ptq"] = ""
    FOLD_BN: Any = False
    BIT_CONFIG: tuple[dict[str, dict[Literal["w", "a"], Bits]], ...] = Field(default=(), max_length=1)
    BIT_ASSIGNER: BitAssigner = BitAssigner()
    W: Weights = Weights()
    A: Activations = Activations()
    CALIBRATION: Calibration = Calibration()
    FINETUNE: Finetune = Finetune()
    FP: Literal["float", "authors"] = "float"  # ours: "authors" keeps the pins (stem 8/8) at bits 0/0, as they do
    BN: Literal["shared", "float"] = "shared"  # ours: passes that running statistics follow: all, or float ones alone
    SYNC_RANGES: bool = True  # ours: ranges are those of all processes; the authors': of each


class Setting(Node):
    """Heads and loss of a self-supervised method."""

    DIM: AtLeastOne = 128
    HIDDEN_DIM: AtLeastOne = 2048
    T: Positive = 0.07
    MOCO_K: AtLeastOne = 65536
    MOMENTUM: Fraction = 0.999  # of the momentum copy
    MLP: bool = True  # a hidden layer in MoCo's and SimCLR's projector
    OUTPUT_BN: bool | None = None  # ours: batch norm at the projector's output; None: as the authors' TYPE has it
    NEGATIVES: Literal["local", "gathered"] = "local"  # ours: SimCLR's, of this process or of all
    PREDICTOR_LR: Literal["scheduled", "fixed"] = "scheduled"  # ours: "fixed" as in the SimSiam paper


class Ssl(Node):
    """The self-supervised method."""

    TYPE: SslType | None = None
    SETTING: Setting = Setting()


class Config(Node):
    """The whole tree; `BASE_CONFIG` belongs to the files."""

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
    QUANT: Quant = Quant()
    SSL: Ssl = Ssl()

    @model_validator(mode="after")
    def _criterion_fits(self) -> Self:
        name = self.TRAIN.LOSS.CRITERION.NAME
        allowed = CRITERIA[self.SSL.TYPE.rpartition("_")[2]] if self.SSL.TYPE else (name,)
        if name and name not in allowed:
            raise ValueError(
                f"TRAIN.LOSS.CRITERION.NAME={name!r} does not belong to SSL.TYPE={self.SSL.TYPE!r}; "
                f"allowed: {', '.join(allowed)}"
            )
        return self


def read_config(
    command: Command, name: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """The config of a command: a file or a shipped name, `KEY.PATH=VALUE` arguments, and explicitly given flags by key.

    `-j`, `-p` and `--output` have the defaults of the authors' command line (4, 50, ./train_log).

    Raises:
        InputError: see `lowbit.config.tree.load_config`.
    """
    defaults = {"TRAIN.NUM_WORKERS": 4, "TRAIN.PRINT_FREQ": 50, "OUTPUT": "./train_log"}
    dead = partial(without_effect, command)
    return load_config(Config, name, overrides, shipped="ssql", dead=dead, flags=flags, defaults=defaults)
