"""What the command lines of S2-BNN say beside the shared options, as values (no torch)."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lowbit.options import OptimOptions

METHODS = ("contrastive", "contrastive+distillation", "distillation")
OVER = ("channels", "queue")  # what the softmax of the distillation runs over
MAY_DIFFER = (
    "dataset", "epochs", "batch_size", "print_freq", "arch", "teacher_path", "timm_teacher", "model_path",
    "keep", "probe_every", "weights", "evaluate",
)  # fmt: skip
LAUNCHER = {
    "--dist-url": "tcp://224.66.41.62:23456", "--dist-backend": "nccl", "--world-size": -1, "--rank": -1,
    "--gpu": None, "--multiprocessing-distributed": False,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TrainOptions(OptimOptions):
    """What both of the authors' programs have, by its flag (`s2bnn.cli` says what each is).

    Attributes:
        schedule: 0-based epochs. image_size: in pixels; None: 224, or their own in memory.
    """

    dataset: str = "folder"
    epochs: int = 200
    batch_size: int = 256
    lr: float = 0.0003
    schedule: tuple[int, ...] = (120, 160)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    print_freq: int = 10
    image_size: int | None = None
    sync_bn: bool = False

    @property
    def compared(self) -> dict[str, Any]:
        """What a resumed run has in common with its start, by flag; the loop compares epochs, batch and files."""
        fields = reversed(asdict(self).items())  # the command's own first, which the others' defaults follow
        values = {name: value for name, value in fields if name not in MAY_DIFFER}
        values["schedule"] = list(self.schedule)
        return {f"--{name.replace('_', '-')}": value for name, value in values.items()}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(TrainOptions):
    """Of `main_moco`; `teacher_t` None: `moco_t`."""

    method: str
    step: int
    arch: str = "resnet50"
    student: str = "reactnet_a"
    teacher_path: Path | None = None
    timm_teacher: bool = False
    model_path: Path | None = None
    moco_dim: int = 128
    moco_k: int = 65536
    moco_m: float = 0.999
    moco_t: float = 0.07
    teacher_t: float | None = None
    mlp: bool = False
    aug_plus: bool = False
    cos: bool = False
    true_cosine: bool = False
    over: str = "channels"
    kl: bool = False
    keep: int = 3
    probe_every: int = 10

    @property
    def contrasts(self) -> bool:
        """Whether there are a key encoder and a queue of its keys."""
        return self.method.startswith("contrastive")

    @property
    def distils(self) -> bool:
        """Whether there is a teacher."""
        return self.method.endswith("distillation")


def pretrain_options(
    method: str, step: int, schedule: tuple[int, ...], weight_decay: float | None, **more: Any
) -> PretrainOptions:
    """With the authors' defaults by variant, where `schedule` is empty or `weight_decay` None."""
    if not schedule:
        schedule = (120, 195) if (method, step) == ("contrastive", 2) else (120, 160)
    if weight_decay is None:
        weight_decay = 0.0 if (method, step) == ("distillation", 1) else 1e-4
    return PretrainOptions(method=method, step=step, schedule=schedule, weight_decay=weight_decay, **more)


@dataclass(frozen=True, kw_only=True)
class LinclsOptions(TrainOptions):
    """Of `main_lincls`; `weights` is the file of `--pretrained`; student, step: where it does not say."""

    epochs: int = 100
    lr: float = 30.0
    schedule: tuple[int, ...] = (60, 80)
    weight_decay: float = 0.0
    weights: Path | None = None
    student: str | None = None
    step: int | None = None
    evaluate: bool = False
    cache_features: bool = False
    protocol: str = "moco"


SIMSIAM: dict[str, Any] = {"epochs": 90, "batch_size": 4096, "lr": 0.1, "opt": "lars", "sched": "cosine"}


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """A net in a file, of `report` and `export`, by its flags; None: what the file says."""

    file: Path | None = None
    student: str | None = None
    step: int | None = None
    classes: int | None = None
    image_size: int | None = None
