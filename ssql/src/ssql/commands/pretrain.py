"""`ssql ssl`: pretraining without labels, from a config to the files of a run.

Deviations from the authors' program: a run on other than `TRAIN.GLOBAL_BATCH` pictures a step is reported; k-NN and
collapse figures are taken on the way (labels are read for them alone); log lines of an epoch come to stdout at its end,
without times; copies by epoch (`checkpoint_0020.pth.tar`) hold the weights alone.
"""

from pathlib import Path

from lowbit.checkpoint.write import write_checkpoint
from lowbit.errors import InputError
from lowbit.evaluate.pretraining import Monitored, open_pictures, run_pretraining
from lowbit.export.backbone import save_backbone
from lowbit.models.pretrained_cfg import Cfg, pretrained_cfg
from lowbit.options import OptimOptions, RunOptions
from lowbit.train.batch import BatchPlan, check_queue, check_shuffle
from lowbit.train.configured import batch_of, check_training, dataset_of, job_of
from lowbit.train.copies import Copies
from lowbit.train.epochs import after_multiples
from lowbit.train.run import Result
from lowbit.train.session import Session
from ssql import authors, load
from ssql.commands import AUTHORS_FILE, FILES
from ssql.config import Config, without_effect
from ssql.methods import build
from ssql.objective import SelfSupervised
from ssql.optim import AUTHORS, rates
from ssql.options import PretrainOptions
from ssql.pictures import channels_of

COPIES = Copies(after_multiples(20, 50))  # the authors'


def pretrain(
    options: RunOptions, config: Config, name: str, own: PretrainOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with figures on the way, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    with Session("ssql", options, dataset_of(config.TRAIN), files=FILES) as session:
        check_training("ssl", options, config, config.MODEL.ARCH)
        if config.SSL.TYPE is None:
            raise InputError("SSL.TYPE is missing: name a method, such as SSL.TYPE=SSQL_SimSiam")
        batch = batch_of(config.TRAIN, session, own.keep_global_batch)
        check_batch(config, batch, session.accelerator.num_processes)
        channels, side = channels_of(config), config.MODEL.side
        pictures = open_pictures(session, config.TRAIN.DATASET, side, channels, figures=own.probe_every > 0)
        last = {"drop_last": config.method == "MoCo"}
        loader = session.loader(pictures.train, pictures.views, batch, n_views=2, labels=False, **last)
        objective = build(config, pictures.size, optim)
        session.place(objective, sync_batchnorm=config.TRAIN.SYNC_BN)
        if own.authors_layout:
            check_layout(config, objective)
        cfg = pretrained_cfg(pictures.plain, pictures.size)
        job = job_of(
            session, "ssl", config, objective, rates(config, "ssl", optim), loader, batch,
            header=load.header(config, cfg), unused=without_effect("ssl", config, optim.sched),
            name=name, own=own, optim=optim, prefixes=load.PREFIXES, facts=pictures.facts,
        )  # fmt: skip
        monitored = Monitored(encoder="encoder_q", dim=config.SSL.SETTING.DIM, pictures=pictures, every=own.probe_every)
        return run_pretraining(
            job, monitored, facts={"method": config.SSL.TYPE, "dataset": config.TRAIN.DATASET, **pictures.facts},
            lines={"Loss": "loss", config.criterion: "loss"}, copies=COPIES,
            finish=lambda folder, result: job.export(
                folder, result, lambda path: export(config, objective, path, cfg, own.authors_layout)
            ),
        )  # fmt: skip


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
    if method == "MoCo":
        check_shuffle(batch, world)
        check_queue(batch, setting.MOCO_K, "SSL.SETTING.MOCO_K")


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
