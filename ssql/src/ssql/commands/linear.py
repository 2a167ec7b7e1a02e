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

from torch import Tensor, nn

from lowbit.data.views import side_of
from lowbit.evaluate.linear_command import Evaluated, check_linear, give_pretrained_, run_linear
from lowbit.export.backbone import save_backbone
from lowbit.loading import load as load_net
from lowbit.models.create import check_arch
from lowbit.models.heads import linear_classifier
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.models.surgery import run_blank
from lowbit.options import LinearOptions, OptimOptions, RunOptions
from lowbit.train.configured import dataset_of
from lowbit.train.epochs import after_every, after_multiples
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

log = logging.getLogger(__name__)


def linear(
    command: Command, options: RunOptions, config: Config, name: str, own: LinearOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with evaluations on the way, and write the results. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; what was trained is saved.
    """
    with Session("ssql", options, dataset_of(config.TRAIN), [config.MODEL.PRETRAINED], files=FILES) as session:
        check_linear(command, options, config, own, keeps_best=command == "default")
        check_arch(config.MODEL.ARCH)
        train, held = session.train_and_held()
        test = session.pictures("test")
        side, classes = side_of(train, config.MODEL.side), config.MODEL.classes(train.name, len(train.classes))
        views, shown = transforms_of(config, train, side)
        size, quant, arch = (3, side, side), config.QUANT, config.MODEL.ARCH
        net, content = open_net(session, config, size, classes)
        quantized, fixed = is_quantized(quant), fixed_pictures(quant.CALIBRATION, train, session)
        reestimates = quantized and config.TRAIN.LINEAR_EVAL
        if reestimates:
            check_statistics(net, quant.CALIBRATION, train)
        cfg, bits = pretrained_cfg(shown, size, train.classes), {"w_bits": quant.W.BIT, "a_bits": quant.A.BIT}
        unused = without_effect(command, config, optim.sched)
        return run_linear(
            session, command, config, name, own, optim,
            Evaluated(net, content, train, test, held, views, shown, bits, unused),
            header=load.header(config, cfg, classes), rates=rates(config, command, optim), due=DUE[command],
            optimizer=partial(optimizer, config, command=command, optim=optim),
            prepare=lambda: calibrate(net, fixed, shown, session) if quantized else None,
            best=None if command == "linear" else "top1" if held is None else "val_top1",
            figures=lambda task: task.reestimated_figures(fixed.trained(task.views)) if reestimates else {},
            export=lambda folder: save_backbone(net, folder / "backbone.safetensors", arch, cfg),
        )  # fmt: skip


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
    content = give_pretrained_(net, given, session, config, lambda: load_net(path))
    return session.place(net, sync_batchnorm=sync and not config.TRAIN.LINEAR_EVAL), content
