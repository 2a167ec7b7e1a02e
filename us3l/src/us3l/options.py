"""What the command lines of US3L say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Of `ssl` and `distill`.

    Attributes:
        keep_global_batch: accumulate gradients to reach `TRAIN.GLOBAL_BATCH`.
        probe_every: epochs between k-NN and collapse figures; 0: none.
    """

    keep_global_batch: bool = False
    probe_every: int = 10


@dataclass(frozen=True, kw_only=True)
class SlimmableOptions:
    """Of `slimmable`.

    Attributes:
        keep_global_batch: accumulate gradients to reach `TRAIN.GLOBAL_BATCH`.
    """

    keep_global_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    """Of `linear`.

    Attributes:
        keep_global_batch: accumulate gradients to reach `TRAIN.GLOBAL_BATCH`.
        cache_features: train a probe on the evaluation transform.
    """

    keep_global_batch: bool = False
    cache_features: bool = False


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Of `calibrate`.

    Attributes:
        widths: a file each; none: `MODEL.OFA.WIDTH_MULT`.
    """

    widths: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WidthSweepOptions:
    """Of `sweep`; None: what the checkpoint says.

    Attributes:
        checkpoint: the file. arch: timm's or the authors' name of the net, where the file does not say.
        widths: the variants; none: those of a list that was trained, else quarters. distinct: all sub-networks.
        best_under: multiply-accumulates, in millions: the largest sub-network of at most so many is evaluated.
        probe_per_width: also train a probe at each.
        dataset: a name as in TRAIN.DATASET. calibration: MODEL.OFA.CALIBRATION_PICTURES.
        probe_lr, probe_epochs: of the probes.
    """

    checkpoint: Path
    widths: tuple[float, ...] = ()
    distinct: bool = False
    best_under: float | None = None
    probe_per_width: bool = False
    dataset: str | None = None
    arch: str | None = None
    calibration: int | None = None
    probe_lr: float = 30.0
    probe_epochs: int = 100


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Of `export`; None: what the checkpoint says.

    Attributes:
        checkpoint: the file. width: of the sub-network; None: that of the file's statistics, else the widest.
        kind: "plain", or "packed": one file of `lowbit.export.packed`.
        dataset, arch, calibration: as in `WidthSweepOptions`.
    """

    checkpoint: Path
    width: float | None = None
    kind: str = "plain"
    dataset: str | None = None
    arch: str | None = None
    calibration: int | None = None
