"""What the command lines of SSQL say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass
from pathlib import Path

from ssql.bitwidths import Bits


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """Of `ssl`.

    Attributes:
        keep_global_batch: accumulate gradients to reach `TRAIN.GLOBAL_BATCH`.
        probe_every: epochs between k-NN and collapse figures; 0: none.
        authors_layout: write a checkpoint for the authors' program at the end, too.
    """

    keep_global_batch: bool = False
    probe_every: int = 10
    authors_layout: bool = False


@dataclass(frozen=True, kw_only=True)
class LinearOptions:
    """Of `linear` and `default`.

    Attributes:
        keep_global_batch: accumulate gradients to reach `TRAIN.GLOBAL_BATCH`.
        cache_features: train a probe on the evaluation transform.
    """

    keep_global_batch: bool = False
    cache_features: bool = False


@dataclass(frozen=True, kw_only=True)
class BitSweepOptions:
    """Of `sweep`; None: what the checkpoint says.

    Attributes:
        checkpoint: the file. arch: timm name, where the file does not say.
        bits: the variants. probe_per_bits: also train a probe at each.
        dataset: a name as in TRAIN.DATASET. fp: QUANT.FP. calibration: QUANT.CALIBRATION.PICTURES.
        probe_lr, probe_epochs: of the probes.
    """

    checkpoint: Path
    bits: tuple[Bits, ...]
    probe_per_bits: bool = False
    dataset: str | None = None
    arch: str | None = None
    fp: str | None = None
    calibration: int | None = None
    probe_lr: float = 30.0
    probe_epochs: int = 100
