"""`ssql ssl`: pretraining without labels, from a config to the files of a run.

Deviations from the authors' program: a run on other than `TRAIN.GLOBAL_BATCH` pictures a step is told; k-NN and
collapse figures are taken on the way (labels are read for them alone); log lines of an epoch come to stdout at its end,
without times; copies by epoch (`checkpoint_0020.pth.tar`) hold the weights alone.
"""

import dataclasses
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.config import leaves
from lowbit.data.datasets import DATASETS
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import Pictures
from lowbit.errors import InputError
from lowbit.evaluate.collapse import HEALTHY
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.checkpoint import write_checkpoint
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, check_run, fit
from lowbit.train.process import on_main
from lowbit.train.protocol import Stage
from lowbit.train.session import Session
from ssql import authors, load
from ssql.config import Config
from ssql.idle import without_effect
from ssql.methods import build, rates
from ssql.objective import SelfSupervised
from ssql.plan import BatchPlan, Choices, batch_plan, check
from ssql.views import recipes, side_of
from ssql.watch import Watch

TRIAL_STEPS = 2  # timed by a dry run
AUTHORS = "checkpoint_authors.pth.tar"
FREE = {  # of the config: what may differ when a run is resumed, or what the loop compares itself
    "OUTPUT", "SEED", "MODEL.CHECKPOINT", "MODEL.PRETRAINED", "TRAIN.EPOCHS", "TRAIN.BATCH_SIZE", "TRAIN.GLOBAL_BATCH",
    "TRAIN.NUM_WORKERS", "TRAIN.PRINT_FREQ",
}  # fmt: skip

log = logging.getLogger(__name__)


def pretrain(options: RunOptions, config: Config, how: Choices) -> Result | None:
    """Check, then train, with probes on the way, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    dataset = config.TRAIN.DATASET if config.TRAIN.DATASET in DATASETS else "folder"
    resumed = [Path(options.resume)] if options.resume not in (None, "auto") else []
    with Session("ssql", options, dataset, resumed) as session:
        check(options, config)
        plan = batch_plan(options, config, how, session)
        session.download()
        return _pretrain(session, config, how, plan)


def _pretrain(session: Session, config: Config, how: Choices, plan: BatchPlan) -> Result | None:
    options = session.options
    pictures = session.pictures("train", options.limit_train)
    test = session.pictures("test", options.limit_eval) if how.probe_every else None
    side = side_of(config, pictures)
    size = (3, side, side)
    views, shown = recipes(config, pictures, side)
    common = session.loader_options()
    loader = Loader(
        pictures, views, global_batch=plan.total, seed=options.seed, n_views=2, labels=False,
        drop_last=str(config.SSL.TYPE).endswith("MoCo"), **common,
    )  # fmt: skip
    objective = _objective(session, config, size)
    if how.authors_layout:
        authors.to_authors(load.state_dict(objective))  # a net without such a layout is refused before it is trained
    stage = Stage(objective, config.TRAIN.EPOCHS, rates(config))
    head = load.header(config, size)
    run = Run(
        accelerator=session.accelerator,
        seed=options.seed,
        max_steps=options.max_steps,
        save_every=options.save_every,
        accumulate=plan.parts,
        clip_grad=options.clip_grad,
        compile=options.compile,
        log_every=config.TRAIN.PRINT_FREQ,
        resume=session.resumed(),
        options=_shared(config, head, options),
        header=head,
        prefixes=load.PREFIXES,
    )
    _check_run(stage, loader, run)
    if options.dry_run:
        _say_plan(session, config, plan, stage, loader, run)
        return None
    facts = {"global_batch": plan.total, "batch_per_process": plan.per_process, "accumulate_parts": plan.parts}
    described = {**dataclasses.asdict(how), "config": head["config"]}
    with session.open_folder("ssl", described, facts) as folder:
        assert folder is not None  # --output has a default
        sets = None if test is None else _sets(pictures, test, shown, common)
        watch = Watch(session, folder, config, head, loader, sets, how.probe_every)
        result = fit([stage], loader, dataclasses.replace(run, folder=folder, probes=(watch,)))
        _finish(session, config, how, objective, folder, head, result, {**facts, "pictures": len(pictures)})
    return result


def _objective(session: Session, config: Config, size: tuple[int, int, int]) -> SelfSupervised:
    """The method on the device; with `TRAIN.SYNC_BN` batch norm is that of the whole batch."""
    objective = build(config, size)
    if config.TRAIN.SYNC_BN and session.accelerator.num_processes > 1:
        sync_batchnorm_(objective)
    session.place(objective)
    return objective


def _sets(train: Pictures, test: Pictures, shown: Any, common: Mapping[str, Any]) -> tuple[EvalLoader, EvalLoader]:
    """The bank and the queries of k-NN, both as evaluation shows pictures."""
    bank, queries = (EvalLoader(pictures, shown, batch_size=256, **common) for pictures in (train, test))
    return bank, queries


def _shared(config: Config, head: Mapping[str, Any], options: RunOptions) -> dict[str, Any]:
    """What a resumed run must have in common with its start: every key that acts, and which pictures."""
    idle = without_effect("ssl", config)
    kept: dict[str, Any] = {"limit_train": options.limit_train, "clip_grad": options.clip_grad}
    for key in leaves(Config):
        if key not in FREE and not any(key == one or key.startswith(f"{one}.") for one in idle):
            value: Any = head["config"]
            for part in key.split("."):
                value = value[part]
            kept[key] = value
    return kept


def _check_run(stage: Stage, loader: Loader, run: Run) -> None:
    """`check_run`, and whether each part of a batch has two pictures, without which batch norm has no variance."""
    try:
        check_run([stage], loader, run)
    except InputError as error:
        raise InputError(str(error).replace("--resume:", "--resume (MODEL.CHECKPOINT):", 1)) from error
    if loader.last_batch // (run.accelerator.num_processes * run.accumulate) < 2:
        raise InputError(
            f"the last batch of an epoch has {loader.last_batch} pictures for {run.accelerator.num_processes} "
            f"processes x {run.accumulate} parts, and batch norm needs two in each: change TRAIN.BATCH_SIZE"
        )


def _say_plan(session: Session, config: Config, plan: BatchPlan, stage: Stage, loader: Loader, run: Run) -> None:
    """Train a few steps for their time, and say what the whole would be."""
    trial = fit([stage], loader, dataclasses.replace(run, max_steps=TRIAL_STEPS, save_every=None, resume=None))
    session.say_facts(
        {
            "method": config.SSL.TYPE,
            "net": config.MODEL.ARCH,
            "parameters": sum(p.numel() for p in stage.objective.parameters()),
            "dataset": config.TRAIN.DATASET,
            "training pictures": len(loader.pictures),
            "batch_per_process": plan.per_process,
            "global_batch": plan.total,
            "steps": stage.epochs * len(loader),
            "steps per epoch": len(loader),
            "estimated seconds": stage.epochs * len(loader.pictures) / trial.images_per_second,
        }
    )


def _finish(
    session: Session, config: Config, how: Choices, objective: SelfSupervised, folder: RunFolder,
    head: Mapping[str, Any], result: Result, facts: Mapping[str, Any],
) -> None:  # fmt: skip
    """Results of a run that is over, or that `--max-steps` ended; a collapsed net is told."""
    values: dict[str, Any] = {**result.eval, "loss": result.train.get("loss"), "steps": result.done}
    if "z_std_relative" in result.eval:
        values["collapsed"] = not result.eval["z_std_relative"] > HEALTHY
    speed = {"seconds": result.seconds, "images_per_second": result.images_per_second, "finished": result.finished}
    session.write_result(folder, {**values, **speed, **facts})
    if values.get("collapsed") and session.accelerator.is_main_process:
        log.warning(
            "the outputs' standard deviation is %.2f of a healthy 1/sqrt(%d), below 0.5: the net has collapsed, or has "
            "hardly been trained", result.eval["z_std_relative"], config.SSL.SETTING.DIM,
        )  # fmt: skip
    if result.finished:
        on_main(session.accelerator, partial(_export, config, how, objective, folder, head))


def _export(
    config: Config, how: Choices, objective: SelfSupervised, folder: RunFolder, head: Mapping[str, Any]
) -> None:
    encoder: nn.Module = objective.encoder_q
    save_backbone(encoder, folder.path / "backbone.safetensors", config.MODEL.ARCH)
    if how.authors_layout:
        channels, height, width = head["input_size"]
        follows = authors.follows_of(config.MODEL.ARCH, (channels, height, width))
        state = authors.to_authors(load.state_dict(objective), follows)
        content = {"epoch": config.TRAIN.EPOCHS, "state_dict": state}
        write_checkpoint(folder.path / AUTHORS, content, keep_previous=False)
