"""What the training commands decide, refuse or say before the first step: checks, pictures per step, a dry run."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lowbit.config.unused import used_values
from lowbit.data.loader import Loader
from lowbit.errors import InputError
from lowbit.models.create import check_arch
from lowbit.options import RunOptions
from lowbit.train.loop import Run, check_run, fit
from lowbit.train.protocol import Stage
from lowbit.train.session import Session
from ssql.config import Config, without_effect
from ssql.unused_keys import Command

TRIAL_STEPS = 2  # timed by a dry run, after one step that compiles and starts the libraries
FREE = {  # of the config: what may differ when a run is resumed, or what the loop compares itself
    "OUTPUT", "SEED", "MODEL.CHECKPOINT", "MODEL.PRETRAINED", "TRAIN.EPOCHS", "TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH",
    "TRAIN.NUM_WORKERS", "TRAIN.PRINT_FREQ",
}  # fmt: skip

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BatchPlan:
    """Pictures per step: `per_process` in one forward (before --accumulate), `total` per optimizer step, `parts`.

    `remark` is for whoever reads the log, if there is something to say.
    """

    per_process: int
    total: int
    parts: int
    remark: str = ""

    @property
    def facts(self) -> dict[str, int]:
        """As `config.json`, `result.json` and a dry run say it."""
        return {"global_batch": self.total, "batch_per_process": self.per_process, "accumulate_parts": self.parts}

    def say_remark(self, session: Session) -> None:
        """When nothing is left to refuse, so that a refusal is one line."""
        if self.remark and session.accelerator.is_main_process:
            log.warning(self.remark)


def check_named(config: Config) -> None:
    """Refuse a training of no net, on nothing, or for no epoch.

    Raises:
        InputError: a key that has to be set and is not.
    """
    for key, value in (("MODEL.ARCH", config.MODEL.ARCH), ("TRAIN.DATASET", config.TRAIN.DATASET)):
        if not value:
            raise InputError(f"{key} is empty: name it in the config, or as {key}=NAME after the command")
    check_arch(config.MODEL.ARCH)
    if config.TRAIN.EPOCHS < 1:
        raise InputError(f"TRAIN.EPOCHS={config.TRAIN.EPOCHS}: give 1 or more")


def refuse(given: Mapping[str, Any], why: str) -> None:
    """Refuse options that a command does not have.

    Raises:
        InputError: the first that was given.
    """
    for flag, value in given.items():
        if value:
            raise InputError(f"{flag} has no meaning {why}: leave it out")


def batch_plan(options: RunOptions, config: Config, keep_global_batch: bool, session: Session) -> BatchPlan:
    """How many pictures a step sees; another number than the learning rate was chosen for makes a remark.

    Raises:
        InputError: --keep-global-batch cannot reach `TRAIN.GLOBAL_BATCH`.
    """
    per_process, world = config.TRAIN.BATCH_SIZE, session.accelerator.num_processes
    wanted = config.TRAIN.GLOBAL_BATCH
    total, said = per_process * world, f"TRAIN.BATCH_SIZE={per_process} on {world} process(es)"
    parts, remark = 1, ""
    if wanted is not None and wanted != total:
        if not keep_global_batch:
            remark = (
                f"{said} makes batches of {total} pictures, and the learning rate was chosen for "
                f"TRAIN.GLOBAL_BATCH={wanted}; it stays as it is: --keep-global-batch accumulates gradients"
            )
        elif wanted % total:
            raise InputError(
                f"--keep-global-batch: {said} makes {total} pictures, of which TRAIN.GLOBAL_BATCH={wanted} is no "
                "multiple: change TRAIN.BATCH_SIZE"
            )
        else:
            parts, total = wanted // total, wanted
    return BatchPlan(per_process, total, parts * options.accumulate, remark)


def shared(command: Command, config: Config, options: RunOptions) -> dict[str, Any]:
    """What a resumed run must have in common with its start: every key that acts, and which pictures.

    Args:
        command: its name.
        config: of the run.
        options: of the run.
    """
    acting = used_values(config, {*without_effect(command, config), *FREE})
    return {"limit_train": options.limit_train, "clip_grad": options.clip_grad, **acting}


def check_start(stage: Stage, loader: Loader, run: Run, batch_norm: bool) -> None:
    """`check_run`, and whether each part of a batch has two pictures, without which batch norm has no variance.

    Args:
        stage: the only one.
        loader: of the training.
        run: without its folder.
        batch_norm: whether it is trained.

    Raises:
        InputError: see there.
    """
    try:
        check_run([stage], loader, run)
    except InputError as error:
        raise InputError(str(error).replace("--resume:", "--resume (MODEL.CHECKPOINT):", 1)) from error
    if batch_norm and loader.last_batch // (run.accelerator.num_processes * run.accumulate) < 2:
        raise InputError(
            f"the last batch of an epoch has {loader.last_batch} pictures for {run.accelerator.num_processes} "
            f"processes x {run.accumulate} parts, and batch norm needs two in each: change TRAIN.BATCH_SIZE"
        )


def say_plan(
    session: Session, config: Config, plan: BatchPlan, stage: Stage, loader: Loader, run: Run,
    facts: Mapping[str, Any], passes: int | None = None,
) -> None:  # fmt: skip
    """Train a few steps for their time, and say what the whole would be.

    The command's own `facts` come first; the set is run through the net `passes` times (None: in every epoch).
    """
    plan.say_remark(session)
    short = dataclasses.replace(run, max_steps=1, save_every=None, resume=None)
    fit([stage], loader, short)
    trial = fit([stage], loader, dataclasses.replace(short, max_steps=TRIAL_STEPS))
    passes = stage.epochs if passes is None else passes
    session.say_facts(
        {
            **facts,
            "net": config.MODEL.ARCH,
            "parameters": sum(p.numel() for p in stage.objective.parameters()),
            "dataset": config.TRAIN.DATASET,
            "training pictures": len(loader.pictures),
            "batch_per_process": plan.per_process,
            "global_batch": plan.total,
            "steps": stage.epochs * len(loader),
            "steps per epoch": len(loader),
            "estimated seconds": passes * len(loader.pictures) / trial.images_per_second,
        }
    )
