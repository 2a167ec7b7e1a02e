"""`ssql ssl`: pretraining without labels, from a config to the files of a run.

Deviations from the authors' program: a run on other than `TRAIN.GLOBAL_BATCH` pictures a step is reported; k-NN and
collapse figures are taken on the way (labels are read for them alone); log lines of an epoch come to stdout at its end,
without times; copies by epoch (`checkpoint_0020.pth.tar`) hold the weights alone.
"""

import logging
from pathlib import Path

from lowbit.checkpoint.write import write_checkpoint
from lowbit.config.keys.root import RESUME
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.monitor import monitor_pretraining, monitored_pictures, report_collapse
from lowbit.export.backbone import save_backbone
from lowbit.models.create import check_arch
from lowbit.models.pretrained_cfg import Cfg, pretrained_cfg
from lowbit.options import OptimOptions, RunOptions
from lowbit.train.batch import BatchPlan
from lowbit.train.configured import batch_of, dataset_of, described, refuse, shared
from lowbit.train.copies import keep_copies
from lowbit.train.epochs import after_multiples, print_epoch_lines
from lowbit.train.job import Job
from lowbit.train.protocol import Stage
from lowbit.train.run import Result
from lowbit.train.session import Session
from ssql import authors, load
from ssql.commands import AUTHORS_FILE, FILES
from ssql.config import Config, without_effect
from ssql.methods import build
from ssql.objective import SelfSupervised
from ssql.optim import AUTHORS, rates
from ssql.options import PretrainOptions
from ssql.pictures import views_of

COPIES = after_multiples(20, 50)  # the authors'
log = logging.getLogger(__name__)


def pretrain(
    options: RunOptions, config: Config, name: str, own: PretrainOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with figures on the way, and write the results. None after a dry run.

    Args:
        options: shared.
        config: resolved.
        name: of the config, for the record.
        own: of this command.
        optim: what replaces the authors' optimizer and schedule.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    resumed = Path(options.resume) if options.resume not in (None, "auto") else None
    with Session("ssql", options, dataset_of(config.TRAIN), [resumed], files=FILES) as session:
        check(options, config)
        batch = batch_of(config.TRAIN, session, own.keep_global_batch)
        check_batch(config, batch, session.accelerator.num_processes)
        labels = config.TRAIN.DATASET != "folder"  # which need not be sorted by class
        train = session.pictures("train", labels=labels)
        test = monitored_pictures(session, labels) if own.probe_every else None
        side = side_of(train, config.MODEL.side)
        size = (3, side, side)
        found = {} if train.classes else {"classes": 0}
        views, shown = views_of(config, train, side)
        loader = session.loader(train, views, batch, n_views=2, labels=False, drop_last=config.method == "MoCo")
        objective = build(config, size, optim)
        session.place(objective, sync_batchnorm=config.TRAIN.SYNC_BN)
        if own.authors_layout:
            check_layout(config, objective)
        cfg = pretrained_cfg(shown, size)
        header = load.header(config, cfg)
        job = Job(
            session, "ssl", [Stage(objective, config.TRAIN.EPOCHS, rates(config, "ssl", optim))], loader, batch,
            header=header, shared=shared(config, without_effect("ssl", config, optim.sched), optim),
            described=described(name, own, optim, header["config"]), log_every=config.TRAIN.PRINT_FREQ,
            prefixes=load.PREFIXES, resume_option=RESUME, facts=found,
        )  # fmt: skip
        job.check()
        if job.planned({"method": config.SSL.TYPE, "dataset": config.TRAIN.DATASET, **found}):
            return None
        with job.open() as folder:
            assert folder is not None  # --output has a default
            if not train.classes and session.accelerator.is_main_process:
                log.info("%s: %d pictures, no classes, so no figure of k-NN", train.name, len(train))
            probes = [print_epoch_lines(session, folder, {"Loss": "loss", config.criterion: "loss"})]
            if test is not None:
                bank, queries = session.eval_loader(train, shown), session.eval_loader(test, shown)
                probes.append(monitor_pretraining("encoder_q", bank, queries, session, every=own.probe_every))
            probes.append(keep_copies(folder, session.accelerator, COPIES, header, load.PREFIXES))
            result = job.fit(folder, probes)
            collapse = report_collapse(result.eval, config.SSL.SETTING.DIM, session)
            job.write_result(folder, result, {"loss": result.train.get("loss"), **collapse})
            job.export(folder, result, lambda path: export(config, objective, path, cfg, own.authors_layout))
    return result


def check(options: RunOptions, config: Config) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that pretraining does not have.
    """
    config.check_training()
    check_arch(config.MODEL.ARCH)
    if config.SSL.TYPE is None:
        raise InputError("SSL.TYPE is missing: name a method, such as SSL.TYPE=SSQL_SimSiam")
    unused = {
        "MODEL.PRETRAINED": config.MODEL.PRETRAINED,
        "--pretrained": options.pretrained,
        "--val-split": options.val_split,
    }
    refuse(unused, "in ssl, which starts from drawn weights and keeps no best")


def check_batch(config: Config, batch: BatchPlan, world: int) -> None:
    """Refuse batches that a method cannot be trained with.

    Args:
        config: of the run.
        batch: pictures per step.
        world: number of processes.

    Raises:
        InputError: parts of a batch would change the loss, or a batch does not fit MoCo's queue.
    """
    method, setting = config.method, config.SSL.SETTING
    if batch.parts > 1 and method == "SimCLR" and setting.NEGATIVES == "gathered":
        raise InputError("SSL.SETTING.NEGATIVES='gathered' needs the whole batch at once: no --accumulate, or 'local'")
    if batch.parts > 1 and method == "MoCo" and world > 1:
        raise InputError("MoCo's key shuffle over processes needs the whole batch at once: leave out what accumulates")
    if method == "MoCo" and batch.total > setting.MOCO_K:
        raise InputError(
            f"a queue of SSL.SETTING.MOCO_K={setting.MOCO_K} keys is shorter than a batch of {batch.total} pictures"
        )


def check_layout(config: Config, objective: SelfSupervised) -> None:
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


def export(config: Config, objective: SelfSupervised, folder: Path, cfg: Cfg, authors_layout: bool) -> None:
    """The float backbone, and the checkpoint in the authors' layout where it is wanted."""
    save_backbone(objective.encoder_q, folder / "backbone.safetensors", config.MODEL.ARCH, cfg)
    if authors_layout:
        follows = authors.follows_of(config.MODEL.ARCH, cfg["input_size"])
        saved = {"epoch": config.TRAIN.EPOCHS, "state_dict": authors.to_authors(load.state_dict(objective), follows)}
        write_checkpoint(folder / AUTHORS_FILE, saved, keep_previous=False)
