"""What several commands take from a config: the data set, the batch, what a resumed run shares with its start."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lowbit.config.keys.root import MAY_DIFFER
from lowbit.config.keys.train import BATCH
from lowbit.config.unused import used_values
from lowbit.data.datasets import DATASETS
from lowbit.errors import InputError
from lowbit.options import OptimOptions, RunOptions
from lowbit.train.batch import BatchPlan, per_process
from lowbit.train.session import Session
from ssql.config import Config, without_effect
from ssql.unused_keys import Command

AUTHORS_FILE = "checkpoint_authors.pth.tar"
FILES = ("features.csv", "features.png", "table.md", "demo.png", AUTHORS_FILE)  # beside those of every method
RESUME = "--resume (MODEL.CHECKPOINT)"  # one parameter


def open_session(options: RunOptions, config: Config, inputs: Sequence[Path | None], resumes: bool = True) -> Session:
    """The command's devices and data; see `lowbit.train.session`.

    Raises:
        InputError: see there.
    """
    name = config.TRAIN.DATASET  # the sets that are folders of pictures have one name in `lowbit.data.datasets`
    return Session("ssql", options, name if name in DATASETS else "folder", inputs, resumes=resumes, files=FILES)


def refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse options that a command does not have.

    Raises:
        InputError: the first that was given.
    """
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} has no meaning {why}: leave it out")


def batch_of(config: Config, session: Session, keep_global_batch: bool) -> BatchPlan:
    """How many pictures a step sees; another number than the learning rate was chosen for makes a remark.

    Raises:
        InputError: --keep-global-batch cannot reach `TRAIN.GLOBAL_BATCH`.
    """
    train, world = config.TRAIN, session.accelerator.num_processes
    accumulate, wanted = session.options.accumulate, train.GLOBAL_BATCH
    return per_process(
        train.BATCH_SIZE, world, accumulate=accumulate, wanted=wanted, keep=keep_global_batch, options=BATCH
    )


def described(name: str, own: Any, optim: OptimOptions, config: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of `config.json`: the config's name, the command's own options, the config itself."""
    return {"config_name": name, **asdict(own), "optim": asdict(optim), "config": config}


def shared(command: Command, config: Config, optim: OptimOptions) -> dict[str, Any]:
    """What a resumed run must have in common with its start: every key that acts, optimizer and schedule.

    Args:
        command: its name.
        config: of the run.
        optim: of the run.
    """
    acting = used_values(config, {*without_effect(command, config, optim.sched), *MAY_DIFFER})
    flags = {"--opt": optim.opt, "--sched": optim.sched, "--warmup-epochs": optim.warmup_epochs}
    return {**acting, **flags}
