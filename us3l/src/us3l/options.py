"""What the command lines of US3L say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass

from lowbit.options import FileOptions, ProbedFileOptions


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Of `calibrate`."""

    widths: tuple[float, ...] = ()  # a file each; none: `MODEL.OFA.WIDTH_MULT`


@dataclass(frozen=True, kw_only=True)
class WidthSweepOptions(ProbedFileOptions):
    """Of `sweep`."""

    widths: tuple[float, ...] = ()  # none: those of a list that was trained, else quarters
    distinct: bool = False  # all sub-networks
    best_under: float | None = None  # the largest sub-network of at most so many million multiply-accumulates
    probe_per_width: bool = False  # also train a probe at each


@dataclass(frozen=True, kw_only=True)
class ExportOptions(FileOptions):
    """Of `export`."""

    width: float | None = None  # of the sub-network; None: that of the file's statistics, else the widest
    kind: str = "plain"  # or "packed": one file of `lowbit.export.packed`
