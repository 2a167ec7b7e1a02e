"""`us3l linear`: a probe on a frozen net (TRAIN.LINEAR_EVAL), or training of the whole net, at MODEL.OFA.WIDTH_MULT.

The authors' protocols: the online encoder of MODEL.PRETRAINED runs at one width, in evaluation mode for a probe;
evaluation comes after every 20th epoch and the last. A net that was trained at several widths has no batch-norm
statistics: MODEL.OFA.CALIBRATE_BN=True re-estimates them at the width before a probe is trained.

Deviations from the authors' program: statistics are a cumulative average over MODEL.OFA.CALIBRATION_PICTURES training
pictures (theirs: three epochs at momentum 0.1, of the first process's pictures); CALIBRATE_BN=False on a file without
statistics of this width is refused (theirs evaluates with mean 0 and variance 1); so are a probe without
MODEL.PRETRAINED and a width that was not trained; files are read by their content.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from lowbit.checkpoint.header import PictureSize, read_header
from lowbit.config.tree import with_values
from lowbit.data.geometry import RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Recipe, dataset_channels, flip_share, imagenet_eval, imagenet_train, plain
from lowbit.data.transforms import CIFAR_SCALE, CIFAR_SIDE, cifar_recipes
from lowbit.data.views import side_of
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import reestimate_
from lowbit.evaluate.linear_command import Evaluated, check_linear, give_pretrained_, run_linear
from lowbit.models.create import check_arch
from lowbit.models.heads import linear_classifier
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.models.surgery import run_blank
from lowbit.options import LinearOptions, OptimOptions, RunOptions
from lowbit.slim.layers import set_width_
from lowbit.slim.widths import show_width, widths_in
from lowbit.train.configured import dataset_of
from lowbit.train.epochs import after_multiples
from lowbit.train.run import Result
from lowbit.train.session import Session
from us3l import load
from us3l.commands import FILES
from us3l.config import Config, without_effect
from us3l.evaluation import fixed_pictures, open_pretrained
from us3l.names import Net
from us3l.network import network
from us3l.optim import AUTHORS, optimizer, rates

DUE = after_multiples(20, first=False)  # the authors'


def linear(
    options: RunOptions, config: Config, name: str, own: LinearOptions, optim: OptimOptions = AUTHORS
) -> Result | None:
    """Check, then train, with evaluations on the way, and write the results."""
    with Session("us3l", options, dataset_of(config.TRAIN), [config.MODEL.PRETRAINED], files=FILES) as session:
        check_linear("linear", options, config, own)
        check_arch(config.MODEL.net.name)
        train, test = session.pictures("train"), session.pictures("test")
        side, classes = side_of(train, config.MODEL.side), config.MODEL.classes(train.name, len(train.classes))
        views, shown = transforms_of(config.TRAIN.DATASET, train, side)
        size, ofa = (3, side, side), config.MODEL.OFA
        net, content, of, widths = open_net(session, config, size, classes)
        said = with_values(config, {"MODEL.ARCH": of.arch})
        fixed = fixed_pictures(ofa, train, session, net)
        facts: dict[str, Any] = {"width": show_width(config.width) if ofa.WIDTH_BY_LAYER else ofa.WIDTH_MULT}
        unused = without_effect("linear", config, optim.sched)

        def prepare() -> None:
            if ofa.CALIBRATE_BN:
                reestimate_(net, fixed.trained(views), session.accelerator)

        return run_linear(
            session, "linear", config, name, own, optim,
            Evaluated(net, content, train, test, None, views, shown, facts, unused),
            header=load.header(said, pretrained_cfg(shown, size, train.classes), classes, config.width, widths),
            optimizer=partial(optimizer, config, command="linear", optim=optim), rates=rates(config, "linear", optim),
            due=DUE, prepare=prepare,
        )  # fmt: skip


def open_net(
    session: Session, config: Config, size: PictureSize, classes: int
) -> tuple[nn.Module, str | None, Net, Sequence[float]]:
    """The classifier on the device, a digest of its file's tensors (None: there are none), its net, the widths trained.

    Its batch-norm statistics are still to be found, or to be resumed.

    Raises:
        InputError: a file that does not fit or was not trained at the width, none where a probe needs one, no
            statistics where they are not to be re-estimated, a net without a linear classifier or for other pictures.
    """
    model, width, path = config.MODEL, config.width, config.MODEL.PRETRAINED
    frozen, warm = config.TRAIN.LINEAR_EVAL, config.TRAIN.WARMUP_FC
    backbone = open_pretrained(path, model.ARCH, size, classifier=warm) if path else None
    known = backbone or read_header(session.resumed() or {}, "us3l", load.FORMAT, load.Us3lHeader)
    of, widths = known.net if known else model.net, (known and known.widths) or widths_in(width)
    net = set_width_(network(of, size, tuple(widths), classes), width)
    run_blank(net, size, setting="MODEL.INPUTSHAPE")
    given: dict[str, Tensor] | None = None
    if backbone is not None:
        backbone.check_width(width, f"MODEL.OFA.{'WIDTH_BY_LAYER' if model.OFA.WIDTH_BY_LAYER else 'WIDTH_MULT'}")
        if frozen and not model.OFA.CALIBRATE_BN and not backbone.has_statistics(width):
            raise InputError(
                f"{path} has no batch-norm statistics of width {show_width(width)}: re-estimate them with "
                "MODEL.OFA.CALIBRATE_BN=True, or name a file of `us3l calibrate`"
            )
        head, _ = linear_classifier(net)
        given = {key: value for key, value in backbone.model.state_dict().items() if not key.startswith(f"{head}.")}
    content = give_pretrained_(net, given, session, config, lambda: backbone.model if backbone else net)
    return session.place(net, sync_batchnorm=config.TRAIN.SYNC_BN and not frozen), content, of, widths


def transforms_of(dataset: str, pictures: Pictures, side: int) -> tuple[Recipe, Recipe]:
    """(the picture that is trained on, with labels; the picture that is evaluated), of `side` pixels; AUG is not read.

    CIFAR at 32 pixels: crops of 80 to 100 % and mirroring; resized to 36 and the middle 32, both bicubic. Files: random
    resized crops; the shorter side resized to 8/7 of what is shown, the middle. Other pictures in memory: crops of 80
    to 100 %; all of it.
    """
    channels = dataset_channels(dataset)
    if not isinstance(pictures, MemoryPictures):
        return imagenet_train(side, channels), imagenet_eval(side, round(side * 8 / 7), channels)
    if dataset in ("cifar10", "cifar100") and side == CIFAR_SIDE:
        return cifar_recipes(channels, channels)
    crop = RandomResizedCrop(side, CIFAR_SCALE, flip=flip_share(dataset))
    whole = plain(channels) if pictures.size == (side, side) else Recipe(channels, ResizedCenterCrop(side, side))
    return Recipe(channels, crop), whole
