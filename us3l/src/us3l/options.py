"""What the command lines of US3L say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass

from lowbit.options import FileOptions, ProbedFileOptions


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Of `calibrate`; widths: a file each; none: `MODEL.OFA.WIDTH_MULT`."""

    widths: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WidthSweepOptions(ProbedFileOptions):
    """Of `sweep`.

    Attributes:
        widths: the variants; none: those of a list that was trained, else quarters. distinct: all sub-networks.
        best_under: multiply-accumulates, in millions: the largest sub-network of at most so many is evaluated.
        probe_per_width: also train a probe at each.
    """

    widths: tuple[float, ...] = ()
    distinct: bool = False
    best_under: float | None = None
    probe_per_width: bool = False


@dataclass(frozen=True, kw_only=True)
class ExportOptions(FileOptions):
    """Of `export`.

    Attributes:
        width: of the sub-network; None: that of the file's statistics, else the widest.
        kind: "plain", or "packed": one file of `lowbit.export.packed`.
    """

    width: float | None = None
    kind: str = "plain"
