"""`us3l ssl`: from a config to the files of a run; `us3l distill` trains the same way.

Deviations from the authors' program: log lines of an epoch come to stdout at its end, without times; k-NN and collapse
figures are taken on the way, of the widest and the narrowest net, with batch-norm statistics re-estimated at either; a
resumed run goes on with its optimizer. Copies by epoch (`checkpoint_0049.pth.tar`, ImageNet alone) are weights alone.
"""

import dataclasses
import logging
from collections.abc import Callable
from functools import partial

from lowbit.errors import InputError
from lowbit.evaluate.pretraining import Context, Monitored, open_pictures, run_pretraining
from lowbit.export.backbone import save_backbone
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.options import OptimOptions, PretrainOptions, RunOptions
from lowbit.slim.statistics import WidthStatistics
from lowbit.slim.widths import show_width
from lowbit.train.batch import BatchPlan, check_queue
from lowbit.train.configured import batch_of, check_training, dataset_of, job_of
from lowbit.train.copies import Copies
from lowbit.train.folder import RunFolder
from lowbit.train.process import has_gpu
from lowbit.train.protocol import Objective
from lowbit.train.run import Result
from lowbit.train.session import Session
from us3l import load, methods
from us3l.commands import FILES
from us3l.config import Config
from us3l.evaluation import fixed_pictures
from us3l.optim import AUTHORS, rates
from us3l.unused_keys import Command, without_effect

log = logging.getLogger(__name__)


def pretrain(
    options: RunOptions, config: Config, name: str, own: PretrainOptions, optim: OptimOptions = AUTHORS,
    command: Command = "ssl", make: Callable[..., Objective] = methods.build,
) -> Result | None:  # fmt: skip
    """Check, then train an objective that `make` builds, and write the results."""
    check_config(command, options, config)
    methods.check(config)
    train, method, read = config.TRAIN, config.method, [config.DISTILL.TEACHER_PRETRAINED]
    with Session("us3l", with_amp(options, config), dataset_of(train), read, files=FILES) as session:
        if train.USE_AMP and session.accelerator.mixed_precision == "no" and session.accelerator.is_main_process:
            log.warning("TRAIN.USE_AMP: the CPU computes in float32")
        widths, sampling = config.trained_widths(), config.sampling
        if not sampling.fixed and widths[0] > sampling.low and session.accelerator.is_main_process:
            log.warning(
                "SAMPLE_SCHEDULER=A with TRAIN.EPOCHS=%d trains no width below %g: give 4 or more for %g",
                train.EPOCHS, widths[0], sampling.low,
            )  # fmt: skip
        batch = batch_of(train, session, own.keep_global_batch)
        check_batch(config, batch, session.accelerator.num_processes)
        pictures = open_pictures(session, train.DATASET, config.MODEL.side, figures=own.probe_every > 0)
        objective = make(config, pictures.size, optim=optim)
        views = {"n_views": objective.n_views, "drop_last": train.DROP_LAST or method == "MoCo"}
        loader = session.loader(pictures.train, pictures.views, batch, labels=False, **views)
        session.place(objective, sync_batchnorm=train.SYNC_BN)
        cfg = pretrained_cfg(pictures.plain, pictures.size)
        job = job_of(
            session, command, config, objective, rates(config, command, optim), loader, batch,
            header=load.header(config, cfg), unused=without_effect(command, config, optim.sched),
            name=name, own=own, optim=optim, prefixes=load.PREFIXES, facts=pictures.facts,
        )  # fmt: skip
        encoder, narrow, wide = objective.get_submodule("encoder_q"), min(widths), max(widths)
        fixed = fixed_pictures(config.MODEL.OFA, pictures.train, session, encoder)

        def at(width: float) -> Context:
            return lambda net: WidthStatistics(net, partial(fixed.trained, pictures.views), session.accelerator).at(
                width
            )

        def finish(folder: RunFolder, result: Result) -> None:
            if result.finished and wide == 1:  # timm has no slimmed nets: `us3l export` writes those
                with at(wide)(encoder):
                    backbone = folder.path / "backbone.safetensors"
                    job.export(folder, result, lambda _: save_backbone(encoder, backbone, config.MODEL.net.name, cfg))

        monitored = Monitored(
            encoder="encoder_q", dim=config.SSL.SETTING.DIM, pictures=pictures, every=own.probe_every,
            contexts={"": at(wide)} | ({f"w{show_width(narrow)}": at(narrow)} if narrow < wide else {}),
        )  # fmt: skip
        return run_pretraining(
            job, monitored, facts={"method": method, "dataset": train.DATASET, **pictures.facts},
            lines=dict.fromkeys(("Loss", config.criterion), widest_loss(config)), finish=finish,
            copies=copies_of(train.DATASET),
        )  # fmt: skip


def copies_of(dataset: str) -> Copies:
    """After which epochs the authors keep a copy."""
    return Copies(lambda clock: dataset == "imagenet" and (clock.epoch + 1) % 50 == 0)


def widest_loss(config: Config) -> str:
    """The metric that holds the base loss of the widest net, which the authors' log shows."""
    sampling = config.sampling
    name = sampling.names(sampling.widths(0, 1, min))[0]
    return f"loss_{name}" if name else "loss"


def check_batch(config: Config, batch: BatchPlan, world: int) -> None:
    """Refuse batches that a method cannot be trained with on `world` processes.

    Raises:
        InputError: a batch does not fit the queue, or its parts would change the loss.
    """
    method, length = config.method, config.SSL.SETTING.MOCO_K
    if config.known.queue:
        check_queue(batch, length, "SSL.SETTING.MOCO_K")
    whole = method == "MoCo_v3" or (method == "MoCo" and world > 1)
    if batch.parts > 1 and whole:
        raise InputError(f"{method} needs the whole batch of all processes at once: leave out what accumulates")


def check_config(command: str, options: RunOptions, config: Config) -> None:
    """What no training of a slimmable net from drawn weights does.

    Raises:
        InputError: see `lowbit.train.configured.check_training`, or other widths of a net that has one.
    """
    model = config.MODEL
    check_training(command, options, config, model.net.name)
    if model.net.kind == "plain" and config.trained_widths() != (1.0,):
        raise InputError(
            f"MODEL.ARCH={model.ARCH} runs at width 1 alone: name us_{model.ARCH} or s_{model.ARCH} (a list)"
        )


def with_amp(options: RunOptions, config: Config) -> RunOptions:
    """The options with what `TRAIN.USE_AMP` means: fp16 on a GPU, as the authors have it; on the CPU nothing."""
    wanted = config.TRAIN.USE_AMP and options.mixed_precision == "no" and has_gpu()
    return dataclasses.replace(options, mixed_precision="fp16") if wanted else options
