"""The section QUANT, whose keys two papers' programs share; a method that quantizes nothing reads none of them."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from lowbit.config.tree import Node
from lowbit.config.values import Amount, AtLeastOne, Count


def _bits(value: int) -> int:
    if value != 0 and not 2 <= value <= 16:
        raise ValueError("should be 0 (not quantized) or 2 to 16 bits")
    return value


BitWidth = Annotated[int, AfterValidator(_bits)]


class Observer(Node):
    """How ranges are found: running extremes, their moving average, least error, or mean -/+ 2 std."""

    NAME: Literal["MINMAX", "MOMENTUM_MINMAX", "MSE", "HISTOGRAM", "GAUSSIAN"] = "MINMAX"
    ALPHA: Amount = 1e-4
    BINS: AtLeastOne = 2049


class Weights(Node):
    """Weights: symmetric."""

    QUANTIZER: Literal["uniform"] | None = None  # None: uniform, where anything is quantized
    BIT: BitWidth = 8
    SYMMETRY: Literal[True] = True
    GRANULARITY: Literal["channelwise", "layerwise"] = "channelwise"
    OBSERVER_METHOD: Observer = Observer()


class Activations(Node):
    """Activations: asymmetric, one scale a tensor; otherwise as `Weights`."""

    QUANTIZER: Literal["uniform"] | None = None
    BIT: BitWidth = 8
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
    """The file of pictures that the authors find ranges on."""

    PATH: str = ""
    TYPE: str = ""
    MODULE_PATH: str = ""
    SIZE: Count = 0
    BATCHSIZE: AtLeastOne = 1
    NUM_WORKERS: Count = 0


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
    BIT_CONFIG: tuple[dict[str, dict[Literal["w", "a"], BitWidth]], ...] = Field(default=(), max_length=1)
    BIT_ASSIGNER: BitAssigner = BitAssigner()
    W: Weights = Weights()
    A: Activations = Activations()
    CALIBRATION: Calibration = Calibration()
    FINETUNE: Finetune = Finetune()
