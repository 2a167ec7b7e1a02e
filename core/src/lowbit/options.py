"""The options that every training or evaluating command shares, as values (no torch: `--help` imports this)."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

DATASETS = ("cifar10", "cifar100", "tiny-imagenet", "folder", "digits")  # that `lowbit.data.datasets` reads
QUANTIZERS = ("ste", "ewgs", "pact", "lsq", "dorefa")  # that are learned (`lowbit.quant.learned`)
MOST = 10**9 - 1  # epochs, steps, pictures
MOST_REAL = 1e9  # rates and strengths; single precision holds what is computed with them
MOST_SEED = 2**63 - 1
MOST_WORKERS = 512
MAX_SIDE = 4096  # of pictures, in pixels
MOST_CLASSES = 10**6
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # that we may use
WORKERS = min(4, CORES)
LOOPS = ("epochs", "train_batch")  # of `SgdOptions`


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Resolved shared options of one command; `cli.py` fills it, the commands read it. Meanings: the README's table.

    Attributes:
        data: dataset root. download: let torchvision fetch it.
        output: the run's folder; None writes nothing (evaluation).
        resume: "auto", a path, or None. overwrite: a folder that holds a run may be replaced.
        max_steps: stop and save after that many batches, counted from the run's start.
        save_every: steps between checkpoints; None: an epoch.
        limit_train, limit_eval: class-balanced subsets, in pictures. val_split: held-out fraction of the training set.
        accumulate: parts of the stated batch per optimizer step. clip_grad: gradient norm.
        max_corrupt: tolerated fraction of unreadable pictures.
    """

    data: Path = Path("./data")
    download: bool = False
    output: Path | None = None
    resume: str | None = None
    overwrite: bool = False
    max_steps: int | None = None
    save_every: int | None = None
    seed: int = 0
    workers: int = WORKERS
    mixed_precision: str = "no"
    compile: bool = False
    limit_train: int | None = None
    limit_eval: int | None = None
    val_split: float | None = None
    accumulate: int = 1
    clip_grad: float | None = None
    channels_last: bool = False
    trackers: tuple[str, ...] = ()
    pretrained: bool = False
    max_corrupt: float = 0.001
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class OptimOptions:
    """Optimizer and schedule, where a run should not have the method's own.

    Attributes:
        opt: "sgd", "adamw" or "lars"; None: the method's own.
        sched: "step" or "cosine"; None: the method's own.
        warmup_epochs: epochs, from the first, in which the learning rate rises linearly to its full value.
    """

    opt: str | None = None
    sched: str | None = None
    warmup_epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class SgdOptions(OptimOptions):
    """Training with labels, by SGD and steps where nothing else is said.

    Attributes:
        train_batch: pictures per step, of the whole job.
        schedule: 0-based epochs at whose start the rate `lr` is multiplied by `gamma`.
    """

    epochs: int
    train_batch: int = 128
    lr: float = 0.1
    schedule: tuple[int, ...] = (150, 225)
    gamma: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4

    @property
    def compared(self) -> dict[str, Any]:
        """What a resumed run has in common with its start, by flag; the loop compares epochs and batch itself."""
        values = {**asdict(self), "opt": self.opt or "sgd", "sched": self.sched or "step"}
        values["schedule"] = list(self.schedule)
        return {f"--{name.replace('_', '-')}": value for name, value in values.items() if name not in LOOPS}


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """Of a training by a YAML config; keep_global_batch: accumulate gradients to reach its global batch."""

    keep_global_batch: bool = False


@dataclass(frozen=True, kw_only=True)
class PretrainOptions(BatchOptions):
    """Of a pretraining; probe_every: epochs between k-NN and collapse figures; 0: none."""

    probe_every: int = 10


@dataclass(frozen=True, kw_only=True)
class LinearOptions(BatchOptions):
    """Of a linear evaluation; cache_features: train a probe on the evaluation transform."""

    cache_features: bool = False


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """Of a checkpoint that is evaluated or exported; None: what it says.

    Attributes:
        checkpoint: the file. dataset: a name as in a config. arch: name of the net.
        calibration: training pictures that ranges or statistics are found on.
    """

    checkpoint: Path
    dataset: str | None = None
    arch: str | None = None
    calibration: int | None = None


@dataclass(frozen=True, kw_only=True)
class ProbedFileOptions(FileOptions):
    """Of a sweep; `probe_lr` and `probe_epochs` are of its probes."""

    probe_lr: float = 30.0
    probe_epochs: int = 100
