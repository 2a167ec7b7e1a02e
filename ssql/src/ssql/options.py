"""What the command lines of SSQL say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass

from lowbit import options
from ssql.bitwidths import Bits


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(options.PretrainOptions):
    """Of `ssl`; authors_layout: write a checkpoint for the authors' program at the end, too."""

    authors_layout: bool = False


@dataclass(frozen=True, kw_only=True)
class BitSweepOptions(options.ProbedFileOptions):
    """Of `sweep`; None: what the checkpoint says.

    Attributes:
        bits: the variants. probe_per_bits: also train a probe at each. fp: QUANT.FP.
    """

    bits: tuple[Bits, ...]
    probe_per_bits: bool = False
    fp: str | None = None
