"""`ssql linear` and `ssql default`: a probe on a frozen net (TRAIN.LINEAR_EVAL), or training of the whole net.

The authors' protocols: the net is read from MODEL.PRETRAINED and quantized at QUANT.W.BIT and QUANT.A.BIT (0: float),
its ranges are found once, and only then the classifier, which is float, is trained on what the quantized net gives; the
net stays in evaluation mode. Without LINEAR_EVAL all of it is trained; at bits that is quantization-aware training, in
which the ranges of weights follow the weights while those of activations stay. `linear` evaluates after every 20th
epoch and the last; `default`, their older command for the same, after each, and keeps the best.

Deviations from the authors' program: ranges are found on fixed pictures as evaluation shows them, and those of weights
are not frozen in training; 0/0 bits are float (`QUANT.FP=authors`: the stem at 8/8); files are read by their content;
a probe without MODEL.PRETRAINED is refused; probes of a quantized net come with a second figure, for which batch-norm
statistics are re-estimated at the bits; features are taken once where every epoch shows the same pictures.
"""

import logging
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from lowbit.config.keys.root import RESUME
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.linear import LinearEvaluation
from lowbit.evaluate.pretrained import load_pretrained_, matching_classifier
from lowbit.export.backbone import save_backbone
from lowbit.loading import load as load_net
from lowbit.models.create import check_arch
from lowbit.models.heads import linear_classifier
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.models.surgery import run_blank
from lowbit.options import LinearOptions, OptimOptions, RunOptions
from lowbit.train.configured import batch_of, dataset_of, described, refuse, shared
from lowbit.train.epochs import after_every, after_multiples
from lowbit.train.job import Job
from lowbit.train.protocol import Stage
from lowbit.train.run import Result
from lowbit.train.session import Session
from ssql import load
from ssql.commands import FILES
from ssql.config import Config, without_effect
from ssql.evaluation import calibrate, check_statistics, fixed_pictures, open_pretrained
from ssql.methods import classifier, is_quantized
from ssql.optim import AUTHORS, optimizer, rates
from ssql.pictures import channels_of, transforms_of
from ssql.unused_keys import Command

DUE = {"linear": after_multiples(20, first=False), "default": after_every(1)}  # the authors'
EVAL_BATCH = 256  # pictures, the authors' largest
CONTENT = "content of MODEL.PRETRAINED"  # among the options of a run, which a resumed one has to share

log = logging.getLogger(__name__)


def linear(
    command: Command, options: RunOptions, config: Config, name: str, own: LinearOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with evaluations on the way, and write the results. None after a dry run.

    Args:
        command: "linear" or "default".
        options: shared.
        config: resolved.
        name: of the config, for the record.
        own: of this command.
        optim: what replaces the authors' optimizer and schedule.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; what was trained is saved.
    """
    read = [Path(name) for name in (options.resume, config.MODEL.PRETRAINED) if name not in (None, "", "auto")]
    with Session("ssql", options, dataset_of(config.TRAIN), read, files=FILES) as session:
        check(command, options, config, own)
        batch = batch_of(config.TRAIN, session, own.keep_global_batch)
        train, held = session.train_and_held()
        test = session.pictures("test")
        side, classes = side_of(train, config.MODEL.side), config.MODEL.classes(train.name, len(train.classes))
        views, shown = transforms_of(config, train, side)
        size, frozen, quant = (3, side, side), config.TRAIN.LINEAR_EVAL, config.QUANT
        net, content = open_net(session, config, size, classes)
        task = LinearEvaluation(
            session, net, frozen=frozen, train=train, test=test, held=held,
            views=shown if own.cache_features else views, shown=shown,
            batch=min(EVAL_BATCH, 2 * config.TRAIN.BATCH_SIZE),
        )  # fmt: skip
        objective = task.objective(partial(optimizer, config, command=command, optim=optim))
        stage = Stage(objective, config.TRAIN.EPOCHS, rates(config, command, optim))
        loader = session.loader(train, task.views, batch)
        cfg = pretrained_cfg(shown, size, train.classes)
        header = load.header(config, cfg, classes)
        chosen = {"cache_features": own.cache_features, CONTENT: content}
        facts = {**task.facts, "w_bits": quant.W.BIT, "a_bits": quant.A.BIT}
        job = Job(
            session, command, [stage], loader, batch, header=header, facts=facts,
            shared=shared(config, without_effect(command, config, optim.sched), optim) | chosen,
            described=described(name, own, optim, header["config"]),
            prefixes={"student.net." if frozen else "student.": ""}, log_every=config.TRAIN.PRINT_FREQ,
            best=None if command == "linear" else "top1" if held is None else "val_top1", resume_option=RESUME,
        )  # fmt: skip
        job.check()
        reestimates, fixed = frozen and is_quantized(quant), fixed_pictures(quant.CALIBRATION, train, session)
        if reestimates:
            check_statistics(net, quant.CALIBRATION, train)
        if job.planned({**facts, "dataset": config.TRAIN.DATASET}, passes=1 if task.caches else None):
            return None
        if is_quantized(quant) and not job.resumed:
            calibrate(net, fixed, shown, session)
        task.open_sets(job)
        with job.open() as folder:
            assert folder is not None  # --output has a default
            result, figures = task.fit(job, folder, DUE[command]), {}
            if result.finished and reestimates:
                figures = task.reestimated_figures(fixed.trained(task.views))
            job.write_result(folder, result, figures)
            if not frozen:
                backbone = folder.path / "backbone.safetensors"
                job.export(folder, result, lambda _: save_backbone(net, backbone, config.MODEL.ARCH, cfg))
    return result


def check(command: Command, options: RunOptions, config: Config, own: LinearOptions) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that the command does not have.
    """
    config.check_evaluation(options.resume is not None)
    check_arch(config.MODEL.ARCH)
    refuse({"--pretrained": options.pretrained}, f"in {command}, which starts from MODEL.PRETRAINED=PATH")
    if command == "linear":
        refuse({"--val-split": options.val_split}, "in linear, which keeps no best")
    if not config.TRAIN.LINEAR_EVAL:
        refuse({"--cache-features": own.cache_features}, "where the whole net is trained (TRAIN.LINEAR_EVAL=False)")


def open_net(
    session: Session, config: Config, size: tuple[int, int, int], classes: int
) -> tuple[nn.Module, str | None]:
    """The classifier on the device, at its bits; its ranges are still to be found, or to be resumed.

    With it comes a digest of the tensors of MODEL.PRETRAINED, which a resumed run may leave out; None: there are none.

    Args:
        session: of the command.
        config: of the run.
        size: (C, H, W) of the pictures.
        classes: of the dataset.

    Raises:
        InputError: a file that does not fit, none where a probe needs one, a net without a linear classifier, or
            for pictures of another size.
    """
    net, path, sync = classifier(config, size, classes), config.MODEL.PRETRAINED, config.TRAIN.SYNC_BN
    if not is_quantized(config.QUANT):
        run_blank(net, size, setting="MODEL.INPUTSHAPE")  # wrapping refuses such pictures, too
    linear_classifier(net)
    given: dict[str, Tensor] | None = None
    if path:
        backbone = open_pretrained(path, config.MODEL.ARCH, size)
        given, seen, shown = backbone.model.state_dict(), backbone.normalization, channels_of(config)
        if seen not in (None, shown) and session.accelerator.is_main_process:
            log.warning("%s was trained with mean and std %s, and is shown pictures of %s", path, seen, shown)
        if config.TRAIN.WARMUP_FC:
            given |= matching_classifier(net, load_net(path), f"TRAIN.WARMUP_FC: {path}")
    elif session.resumed() is None and config.TRAIN.LINEAR_EVAL:
        raise InputError("MODEL.PRETRAINED is empty: name the checkpoint to evaluate, as MODEL.PRETRAINED=PATH")
    content = load_pretrained_(net, given, session.resumed(), CONTENT)
    return session.place(net, sync_batchnorm=sync and not config.TRAIN.LINEAR_EVAL), content
