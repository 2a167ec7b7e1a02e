"""What the command lines of US3L say beside the config and the shared options, as values (no torch)."""

from dataclasses import dataclass


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
