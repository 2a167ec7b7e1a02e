"""The options of BSQ's commands as values (no click, no torch): `cli.py` fills them, `bsq.commands` reads them.

Defaults are the original programs' (`convert.py`, `cifar_finetune.py`) where they had the option.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lowbit.errors import InputError

MAX_BITS = 16  # of a plane-wise weight, as in `bsq.planes`, and of activations
FLOAT_BITS = 32  # of activations: 17 to 32 bits are the authors' way to write floats
CIFAR_DEPTHS = tuple(range(8, 111, 6))
NAMED_DEPTHS = (8, 14, 20, 32, 44, 56, 110)  # whose `-a resnetN` is no net of timm
HAWQ_RESNET20 = {  # HAWQ's widths of ResNet-20 by layer name, as the BSQ authors list them (compared at act 4)
    "conv1": 8, "layer1.0.*": 6, "layer1.1.*": 6, "layer1.2.*": 8, "layer2.*": 3, "layer3.*": 2, "fc": 3,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class NetOptions:
    """Which net, which weights, which pictures.

    Attributes:
        arch: timm name; None: what the file says. dataset: a name of `lowbit.data.datasets`; "": what the file says.
        model: checkpoint the weights come from. test_batch: pictures per evaluated batch, of the whole job.
        image_size: side of the pictures; None: what the checkpoint says, else as the data set's or the net's are shown.
        float64: evaluate in double precision, which no order of operations can move.
    """

    arch: str | None = "cifar_resnet20_1x1"
    dataset: str = "cifar10"
    model: Path | None = None
    test_batch: int = 100
    image_size: int | None = None
    float64: bool = False


@dataclass(frozen=True, kw_only=True)
class ActOptions:
    """Activation quantization, the arguments of `bsq.activation.quantize_bsq_activations_`.

    Attributes:
        bits: 0 and 17 to 32 round nothing.
        range: "batch": the maximum of the batch at hand, the authors'; "running": calibrated once, then fixed.
        clip: "6", "none", "pact", or None: the authors' rule for their nets, the module's own function for others.
        include, exclude: patterns of activation modules; empty `include`: the authors' choice.
    """

    bits: int = 4
    range: str = "batch"
    clip: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WidthOptions:
    """Which layers get how many magnitude bits.

    Attributes:
        bits: of every layer that neither `scheme` (a checkpoint with an `Nbit_dict`) nor `preset` names.
        include, exclude: name patterns of the layers that are quantized.

    Raises:
        InputError: both a scheme and a preset.
    """

    bits: int = 4
    scheme: Path | None = None
    preset: str | None = None
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scheme is not None and self.preset is not None:
            raise InputError(f"--dict {self.scheme} and --preset {self.preset} both give widths; give one of them")


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How bit training finds widths; defaults are the original program's.

    Attributes:
        bits: of a net that is not in bit form yet.
        interval: epochs between re-quantisations (`--Prun_Int`); 0: only at the end.
        threshold: percent of the weights (`--thre`).
        decay: alpha, the group lasso's strength. lasso: `--L1`, which switches it on.
        target: compression (signs not counted) that `decay` is adapted to reach; None: it is constant.
        max_bits, min_bits: ceiling and floor, `N` for all layers or `PATTERN=N`; the last that fits a layer holds.
    """

    bits: int = 4
    interval: int = 50
    threshold: float = 0.0
    decay: float = 0.01
    lasso: bool = False
    target: float | None = None
    max_bits: tuple[str, ...] = ("8",)
    min_bits: tuple[str, ...] = ("1",)

    def limits(self, names: Sequence[str]) -> tuple[Callable[[str], int], Callable[[str], int]]:
        """Ceiling and floor: layer name -> the most bits, the fewest.

        Raises:
            InputError: a text that is no such limit, or a floor above its ceiling.
        """
        ceiling = widths_of("--max-bits", self.max_bits, 8, names)
        floor = widths_of("--min-bits", self.min_bits, 1, names)
        for name in names:
            if floor(name) > ceiling(name):
                both = f"--min-bits {floor(name)} is more than --max-bits {ceiling(name)}"
                raise InputError(f"{both} for layer {name}: lower the one or raise the other")
        return ceiling, floor


FLAGS = {  # of the options that the command line spells otherwise
    "ActOptions.bits": "--act", "ActOptions.range": "--act-range", "ActOptions.clip": "--act-clip",
    "ActOptions.include": "--act-include", "ActOptions.exclude": "--act-exclude",
    "WidthOptions.bits": "--Nbits", "WidthOptions.scheme": "--dict",
    "PruneOptions.bits": "--Nbits", "PruneOptions.interval": "--Prun_Int", "PruneOptions.threshold": "--thre",
    "PruneOptions.lasso": "--L1", "PruneOptions.target": "--target-compression",
}  # fmt: skip


def flag_of(name: str) -> str:
    """The flag of an option, named by its class and field or by its field alone: "PruneOptions.lasso" -> "--L1"."""
    return FLAGS.get(name, f"--{name.rpartition('.')[2].replace('_', '-')}")


def widths_of(flag: str, given: Sequence[str], default: int, names: Sequence[str]) -> Callable[[str], int]:
    """`N` and `PATTERN=N` as a function of layer names.

    Raises:
        InputError: not of that form, out of range, or a pattern that fits no layer.
    """
    table = dict.fromkeys(names, default)
    for text in given:
        pattern, _, number = text.rpartition("=")
        if number not in map(str, range(1, MAX_BITS + 1)):
            raise InputError(f"{flag} {text}: N or PATTERN=N is allowed, N from 1 to {MAX_BITS}")
        fits = [name for name in names if fnmatchcase(name, pattern or "*")]
        if not fits:
            raise InputError(f"{flag} {text}: the pattern fits no layer; they are {', '.join(names)}")
        table.update(dict.fromkeys(fits, int(number)))
    return table.__getitem__


def net_of(
    arch: str | None, depth: int | None, block_name: str, model: Path | None,
    dataset: str | None = "cifar10", test_batch: int = 100, image_size: int | None = None, float64: bool = False,
) -> NetOptions:  # fmt: skip
    """Net options out of the authors' `-a`, `--depth` and `--block-name`."""
    arch = "resnet" if arch is None and depth is not None else arch
    name = None if arch is None else timm_name(arch, depth, block_name)
    return NetOptions(
        arch=name, model=model, dataset=dataset or "", test_batch=test_batch, image_size=image_size, float64=float64
    )


def timm_name(arch: str, depth: int | None, block_name: str = "BasicBlock") -> str:
    """The timm name of an `-a`: `resnet` (with `--depth`) and `resnet20` are the authors' CIFAR nets.

    Raises:
        InputError: a depth that is not 6n + 2, or that the name contradicts; a block the CIFAR nets do not have.
    """
    named = {f"resnet{d}": d for d in NAMED_DEPTHS}
    if block_name != "BasicBlock" and (arch == "resnet" or arch in named):
        raise InputError(f"--block-name {block_name}: {arch} has BasicBlock only; for Bottleneck use -a resnet50")
    if arch == "resnet":
        depth = 20 if depth is None else depth
        if depth not in CIFAR_DEPTHS:
            raise InputError(f"--depth {depth}: the CIFAR ResNet has 6n + 2 layers, 8, 14, 20 to {CIFAR_DEPTHS[-1]}")
        return f"cifar_resnet{depth}_1x1"
    if depth is not None and depth != named.get(arch):
        raise InputError(f"--depth {depth} contradicts -a {arch}: use -a resnet --depth {depth}, or leave --depth out")
    return f"cifar_resnet{named[arch]}_1x1" if arch in named else arch
