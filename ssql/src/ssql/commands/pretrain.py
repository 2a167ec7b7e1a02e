"""`ssql ssl`: pretraining without labels, from a config to the files of a run.

Deviations from the authors' program: a run on other than `TRAIN.GLOBAL_BATCH` pictures a step is told; k-NN and
collapse figures are taken on the way (labels are read for them alone); log lines of an epoch come to stdout at its end,
without times; copies by epoch (`checkpoint_0020.pth.tar`) hold the weights alone.
"""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.datasets import DATASETS
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import Pictures
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.collapse import HEALTHY
from lowbit.evaluate.monitor import monitor_pretraining
from lowbit.export.backbone import save_backbone
from lowbit.options import RunOptions
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.copies import keep_copies
from lowbit.train.epochs import after_multiples, print_epoch_lines
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.process import on_main
from lowbit.train.protocol import Objective, Stage
from lowbit.train.session import Session
from ssql import authors, load
from ssql.config import CRITERIA, Config
from ssql.methods import build, rates
from ssql.objective import SelfSupervised
from ssql.pictures import views_of
from ssql.plan import BatchPlan, batch_plan, check_named, check_start, refuse, say_plan, shared

AUTHORS = "checkpoint_authors.pth.tar"

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says beside the config and the shared options; see `ssql ssl --help`."""

    config_name: str
    keep_global_batch: bool = False
    probe_every: int = 10
    authors_layout: bool = False


def check(options: RunOptions, config: Config) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that pretraining does not have.
    """
    check_named(config)
    if config.SSL.TYPE is None:
        raise InputError("SSL.TYPE is missing: name a method, such as SSL.TYPE=SSQL_SimSiam")
    unused = {
        "MODEL.PRETRAINED": config.MODEL.PRETRAINED,
        "--pretrained": options.pretrained,
        "--val-split": options.val_split,
    }
    refuse(unused, "in ssl, which starts from drawn weights and keeps no best")


def check_batch(config: Config, plan: BatchPlan, world: int) -> None:
    """Refuse batches that a method cannot be trained with.

    Args:
        config: of the run.
        plan: its batches.
        world: number of processes.

    Raises:
        InputError: parts of a batch would change the loss, or a batch does not fit MoCo's queue.
    """
    kind, setting = str(config.SSL.TYPE), config.SSL.SETTING
    if plan.parts > 1 and kind.endswith("SimCLR") and setting.NEGATIVES == "gathered":
        raise InputError("SSL.SETTING.NEGATIVES='gathered' needs the whole batch at once: no --accumulate, or 'local'")
    if plan.parts > 1 and kind.endswith("MoCo") and world > 1:
        raise InputError("MoCo's key shuffle over processes needs the whole batch at once: leave out what accumulates")
    if kind.endswith("MoCo") and plan.total > setting.MOCO_K:
        raise InputError(
            f"a queue of SSL.SETTING.MOCO_K={setting.MOCO_K} keys is shorter than a batch of {plan.total} pictures"
        )


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
        plan = batch_plan(options, config, how.keep_global_batch, session)
        check_batch(config, plan, session.accelerator.num_processes)
        session.download()
        return _pretrain(session, config, how, plan)


def _pretrain(session: Session, config: Config, how: Choices, plan: BatchPlan) -> Result | None:
    options = session.options
    pictures = session.pictures("train", options.limit_train)
    test = session.pictures("test", options.limit_eval) if how.probe_every else None
    side = side_of(pictures, config.MODEL.side)
    size = (3, side, side)
    views, shown = views_of(config, pictures, side)
    common = session.loader_options()
    loader = Loader(
        pictures, views, global_batch=plan.total, seed=options.seed, n_views=2, labels=False,
        drop_last=str(config.SSL.TYPE).endswith("MoCo"), **common,
    )  # fmt: skip
    objective = _objective(session, config, size)
    if how.authors_layout:
        _check_layout(config, objective)
    stage = Stage(objective, config.TRAIN.EPOCHS, rates(config))
    head = load.header(config, size)
    run = Run(
        **session.run_options(),
        accumulate=plan.parts,
        log_every=config.TRAIN.PRINT_FREQ,
        options=shared("ssl", config, options),
        header=head,
        prefixes=load.PREFIXES,
    )
    check_start(stage, loader, run, batch_norm=True)
    if options.dry_run:
        say_plan(session, config, plan, stage, loader, run, {"method": config.SSL.TYPE})
        return None
    facts = plan.facts
    described = {**dataclasses.asdict(how), "config": head["config"]}
    with session.open_folder("ssl", described, facts) as folder:
        assert folder is not None  # --output has a default
        plan.say_remark(session)
        sets = None if test is None else _sets(pictures, test, shown, common)
        criterion = config.TRAIN.LOSS.CRITERION.NAME or CRITERIA[str(config.SSL.TYPE).rpartition("_")[2]][0]
        probes = [print_epoch_lines(session, folder, {"Loss": "loss", criterion: "loss"})]
        if sets is not None:
            probes.append(monitor_pretraining(encoder_of, *sets, session, every=how.probe_every))
        probes.append(keep_copies(folder, session.accelerator, after_multiples(20, 50), head, load.PREFIXES))
        result = fit([stage], loader, dataclasses.replace(run, folder=folder, probes=probes))
        _finish(session, config, how, objective, folder, head, result, {**facts, "pictures": len(pictures)})
    return result


def _check_layout(config: Config, objective: SelfSupervised) -> None:
    """Refuse --authors-layout before training where the reader of such files would refuse what is written after it.

    Raises:
        InputError: the net is none of theirs.
    """
    refused = f"--authors-layout: {config.MODEL.ARCH} is none of the authors' nets"
    try:
        read = load.from_checkpoint({"state_dict": authors.to_authors(load.state_dict(objective))})
    except InputError as error:
        raise InputError(f"{refused} ({error}): leave it out") from error
    if read is None:
        raise InputError(f"{refused}, ResNets 18, 34, 50 and 101: leave it out")


def _objective(session: Session, config: Config, size: tuple[int, int, int]) -> SelfSupervised:
    """The method on the device; with `TRAIN.SYNC_BN` batch norm is that of the whole batch."""
    objective = build(config, size)
    if config.TRAIN.SYNC_BN and session.accelerator.num_processes > 1:
        sync_batchnorm_(objective)
    session.place(objective)
    return objective


def encoder_of(objective: Objective) -> nn.Module:
    """The net that is evaluated."""
    return objective.get_submodule("encoder_q")


def _sets(train: Pictures, test: Pictures, shown: Any, common: Mapping[str, Any]) -> tuple[EvalLoader, EvalLoader]:
    """The bank and the queries of k-NN, both as evaluation shows pictures."""
    bank, queries = (EvalLoader(pictures, shown, batch_size=256, **common) for pictures in (train, test))
    return bank, queries


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
