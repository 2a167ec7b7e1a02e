"""The net that `linear` and `default` train: at its bits, from the file of MODEL.PRETRAINED, frozen but for the head.

Files are told by their content (`ssql.evaluation`); with TRAIN.WARMUP_FC the classifier comes along, from a checkpoint
of a linear evaluation.
"""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowbit.data.pictures import Pictures
from lowbit.errors import InputError
from lowbit.loading import load
from lowbit.models.surgery import run_blank
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.session import Session
from ssql.classifier import classifier, is_quantized
from ssql.config import Config
from ssql.evaluation import open_backbone
from ssql.views import channels_of

CONTENT = "content of MODEL.PRETRAINED"  # among the options of a run, which a resumed one has to share

log = logging.getLogger(__name__)


def classes_of(config: Config, pictures: Pictures) -> int:
    """The dataset's classes, which `MODEL.NUM_CLASSES` may state.

    Raises:
        InputError: it states another number.
    """
    stated, found = config.MODEL.NUM_CLASSES, len(pictures.classes)
    if stated not in (0, found):
        raise InputError(f"MODEL.NUM_CLASSES={stated}: {pictures.name} has {found} classes; give that, or 0")
    return found


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
    net = classifier(config, size, classes)
    if not is_quantized(config.QUANT):
        run_blank(net, size)  # wrapping is told by such a forward, too
    head, weights, resumed = _head_of(net), None, session.resumed()
    if head is None:
        raise InputError(f"MODEL.ARCH={config.MODEL.ARCH} does not end in one linear layer; use another net")
    if config.MODEL.PRETRAINED:
        given = _given(net, head, config, size, session.accelerator.is_main_process)
        weights = _digest(given)
        if resumed is None:
            net.load_state_dict({**net.state_dict(), **given})
    elif resumed is not None:
        weights = _started_from(resumed)
    elif config.TRAIN.LINEAR_EVAL:
        raise InputError("MODEL.PRETRAINED is empty: name the checkpoint to judge, as MODEL.PRETRAINED=PATH")
    if config.TRAIN.LINEAR_EVAL:
        net.requires_grad_(False)
        head.requires_grad_(True)
    elif config.TRAIN.SYNC_BN and session.accelerator.num_processes > 1:
        sync_batchnorm_(net)
    return session.place(net), weights


def _head_of(net: nn.Module) -> nn.Linear | None:
    """Its last layer, if that is a linear one."""
    head = net.get_classifier() if hasattr(net, "get_classifier") else None  # type: ignore[operator]  # timm's
    return head if isinstance(head, nn.Linear) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0" + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def _started_from(resumed: Mapping[str, Any]) -> str | None:
    """The digest in a checkpoint; whether the checkpoint is damaged is asked later."""
    run = resumed.get("run")
    options = run.get("options") if isinstance(run, Mapping) else None
    return options.get(CONTENT) if isinstance(options, Mapping) else None


def _given(
    net: nn.Module, head: nn.Linear, config: Config, size: tuple[int, int, int], tell: bool
) -> dict[str, Tensor]:
    """The tensors of MODEL.PRETRAINED by the net's own keys."""
    path = config.MODEL.PRETRAINED
    backbone = open_backbone(path, config.MODEL.ARCH, size)
    given: dict[str, Tensor] = dict(backbone.model.state_dict())
    seen, shown = backbone.normalization, channels_of(config)
    if tell and seen not in (None, shown):
        log.warning("%s was trained with mean and std %s, and is shown pictures of %s", path, seen, shown)
    if config.TRAIN.WARMUP_FC:
        found = _head_of(load(path))
        if found is None or found.weight.shape != head.weight.shape:
            has = "none" if found is None else f"one of {found.out_features}"
            raise InputError(
                f"TRAIN.WARMUP_FC: {path} should hold a classifier of {head.out_features} classes and holds {has}: "
                "name the checkpoint of a linear evaluation, or leave it out"
            )
        name = next(name for name, module in net.named_modules() if module is head)
        given |= {f"{name}.{key}": value for key, value in found.state_dict().items()}
    return given
