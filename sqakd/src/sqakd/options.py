"""What the command lines of SQAKD say beside the shared options, as values (no torch)."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lowbit.errors import InputError
from sqakd.kd.registry import DistillOptions, distillation

TINY = "main"  # of the authors' programs
NETS = {
    "cifar": {"resnet20": "cifar_resnet20_pad", "resnet32": "cifar_resnet32_pad", "vgg8_bn": "cifar_vgg8",
              "vgg13_bn": "cifar_vgg13"},
    "tiny": {"resnet18_imagenet": "resnet18", "vgg11_bn": "tiny_vgg11", "mobilenet_v2": "tiny_mobilenetv2",
             "shufflenet_v2_x0_5": "tiny_shufflenetv2", "squeezenet1_0": "tiny_squeezenet"},
}  # fmt: skip
FLOAT_BITS = 17  # and more: float
ENDS = ("float", "8", "same")  # bits of the first and last layer
MAY_DIFFER = (
    "command", "dataset", "epochs", "batch_size", "teacher_path", "teacher_arch", "start", "evaluate", "print_freq",
    "calibration",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DistillOptions):
    """Of the three trainings; names and defaults are those of `train_quant` where it has them.

    Attributes:
        command: its name. arch: timm name. dataset: a name of `lowbit.options.DATASETS`; None: by the folder.
        epochs: of the schedule. batch_size: pictures per step, of the whole job. image_size: pixels; None: as usual.
        optimizer_m, lr_m, lr_m_end, lr_scheduler_m, decay_schedule_m, momentum, weight_decay: of the weights.
        optimizer_q, lr_q, lr_q_end, lr_scheduler_q, decay_schedule_q, weight_decay_q: of the quantizers' parameters.
        gamma: factor of both "step" schedules. nesterov: of SGD. warmup_epochs, warmup_steps: of both rates.
        smoothing: of labels.
        quantizer: of `lowbit.options.QUANTIZERS`; "": float. wbits, abits: 0: float.
        delta_w, delta_a: of EWGS. hessian_every: epochs; 0: constant. released: of `LearnedConfig`.
        include, exclude: patterns of layers. first_last: of ENDS. start: file of the float weights.
        sync_bn: batch norm over all processes. calibration: pictures that batch norm is re-estimated on; 0: it is not.
        evaluate: train nothing. print_freq: steps between log lines.
    """

    command: str
    arch: str
    dataset: str | None = None
    epochs: int = 400
    batch_size: int = 256
    image_size: int | None = None
    optimizer_m: str = "adam"
    lr_m: float = 1e-3
    lr_m_end: float = 0.0
    lr_scheduler_m: str = "cosine"
    decay_schedule_m: tuple[int, ...] = (150, 300)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    optimizer_q: str = "adam"
    lr_q: float = 1e-5
    lr_q_end: float = 0.0
    lr_scheduler_q: str = "cosine"
    decay_schedule_q: tuple[int, ...] = (150, 300)
    weight_decay_q: float = 0.0
    gamma: float = 0.1
    nesterov: bool = False
    warmup_epochs: int = 0
    warmup_steps: int = 0
    smoothing: float = 0.0
    quantizer: str = ""
    wbits: int = 0
    abits: int = 0
    delta_w: float = 0.0
    delta_a: float = 0.0
    hessian_every: int = 0
    released: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    first_last: str = "float"
    start: Path | None = None
    sync_bn: bool = False
    calibration: int = 1024
    evaluate: bool = False
    print_freq: int = 100

    @property
    def described(self) -> dict[str, Any]:
        """As `config.json` says it."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items() if name != "command"}

    @property
    def compared(self) -> dict[str, Any]:
        """What a resumed run has in common with its start, by name; the loop compares epochs, batch and teacher."""
        return {name: value for name, value in self.described.items() if name not in MAY_DIFFER}


FIELDS = {field.name for field in fields(TrainOptions)}


def train_options(command: str, **given: Any) -> TrainOptions:
    """Out of a command line.

    Args:
        command: `train_fp`, `train_quant` or TINY.
        given: fields, and the authors' flags that fields are made of.

    Raises:
        InputError: flags that contradict each other, or mean nothing.
    """
    made = {name: value for name, value in given.items() if name in FIELDS}
    for name in [name for name in made if name.startswith("decay_schedule")]:
        if not all(part.isdecimal() and len(part) < 9 for part in made[name].split("-")):
            raise InputError(f"--{name} {made[name]!r:.80}: epochs are allowed, as in 150-300")
        made[name] = tuple(map(int, made[name].split("-")))
    for name in ("arch", "teacher_arch"):
        made[name] = timm_name(command, made.get(name))
    if given.get("load_pretrain"):
        if given["pretrain_path"] is None:
            raise InputError("--load_pretrain: no file: name it, --pretrain_path FILE")
        made["start"] = given["pretrain_path"]
    if "wbits" in given and not given.get("not_quant"):
        made |= _quantization(command, given)
    else:
        made |= {"quantizer": "", "wbits": 0, "abits": 0}
    made |= distillation(given, low_bit=bool(made["quantizer"]))
    if made.get("smoothing", 0.0) is None:
        made["smoothing"] = 0.0 if made["distill"] else SMOOTHING
    for name in ("lr_q", "optimizer_q", "weight_decay_q"):  # the authors' `main` has one optimizer for all
        if name in made and made[name] is None:
            made[name] = made[f"{name[:-2]}_m" if name != "weight_decay_q" else "weight_decay"]
    return TrainOptions(command=command, **made)


SMOOTHING = 0.1  # of labels in the authors' `main`, without a teacher
FIXED_DELTA = 1e-3  # of EWGS until the Hessian is taken
UNSTATED = {TINY: ("dorefa", 4)}  # quantizer and bits; of `train_quant` ewgs at 1


def _quantization(command: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of quantization."""
    default, bits = UNSTATED.get(command, ("ewgs", 1))
    name = given["quantizer"] or default
    if given.get("baseline"):
        if given["quantizer"] not in (None, "ste"):
            raise InputError(f"--baseline True is --quantizer ste, not {name}: give one of them")
        name = "ste"
    wbits, abits = (_bits(given, *names, bits) for names in (("wbits", "weight_levels"), ("abits", "act_levels")))
    ewgs = name == "ewgs"
    hessian = ewgs and given["use_hessian"] and not given["released"]  # the authors' program lost the call that sets it
    deltas = [(given[f"bkwd_scaling_factor{of}"] or FIXED_DELTA * hessian) * ewgs for of in "WA"]
    return {
        "quantizer": name, "delta_w": deltas[0], "delta_a": deltas[1], "hessian_every": given["update_every"] * hessian,
        "wbits": wbits * given.get("QWeightFlag", True), "abits": abits * given.get("QActFlag", True),
        "released": given["released"] and name not in ("ste", "ewgs"),
    }  # fmt: skip


def _bits(given: Mapping[str, Any], bits: str, levels: str, default: int) -> int:
    """Of a number of bits, or of levels: 2 to the bits; 0: float."""
    stated, of_levels, count = given[bits], None, given[levels]
    if count is not None:
        of_levels = count.bit_length() - 1
        if count < 2 or count & (count - 1) or stated not in (None, of_levels):
            both = f" beside --{bits} {stated}" if stated is not None else ""
            raise InputError(f"--{levels} {count}{both}: levels are 2 to the number of bits; give one of the two flags")
    found = stated or of_levels or default
    return 0 if found >= FLOAT_BITS else found


def timm_name(command: str, name: str | None) -> str | None:
    """The timm name of an authors' `--arch`, or of any net."""
    if name is None or command == TINY:
        return NETS["tiny"].get(str(name), name)
    return NETS["cifar"].get(name.removesuffix("_fp").removesuffix("_quant"), name)
