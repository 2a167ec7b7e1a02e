"""Checkpoints of US3L, ours and the authors', to nets; what ours say about themselves.

`lowbit.load(path)` gives an ordinary net. Of `ssl` it is the online encoder with its projector in the classifier's
place, at the largest width that was trained; of `calibrate` the backbone at its width, of `linear` the classifier at
its width. Where a file has no batch-norm statistics (nets are trained at several widths without any), the net
normalises by the batch.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, model_validator
from torch import nn

from lowbit.checkpoint.check import behind, load_state_
from lowbit.checkpoint.header import Header, PictureSize, read_header
from lowbit.config.values import Share
from lowbit.errors import InputError
from lowbit.models.create import check_size
from lowbit.models.pretrained_cfg import Cfg
from lowbit.options import MOST_CLASSES
from lowbit.slim.conversion import sub_network, without_statistics_
from lowbit.slim.statistics import width_of_statistics
from lowbit.slim.widths import Width
from lowbit.train.configured import header_of
from us3l import authors
from us3l.config import Config
from us3l.methods import encoder_of
from us3l.names import Net
from us3l.network import kind_of, network

FORMAT = 1
ENCODER = authors.ENCODER
PREFIXES = {"keys.queue": "queue"}  # the authors' names of MoCo's queue; all other keys are the objective's own


class Us3lHeader(Header):
    """What ours say."""

    input_size: PictureSize  # of the pictures, always
    config: Annotated[Config, BeforeValidator(lambda said: Config.model_validate_json(json.dumps(said)))]
    classes: Annotated[int, Field(strict=True, ge=0, le=MOST_CLASSES)] | None = None  # None: with a projector; 0: none
    widths: Annotated[list[Share], Field(min_length=1)]  # trained: one, a list, or both ends of a range
    # that the batch-norm statistics are of; None: there are none, or each width has its own
    width: Annotated[Share, Field(strict=True)] | Annotated[dict[str, Share], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_net(self) -> Self:
        if self.arch != self.config.MODEL.net.name:
            raise ValueError(f"arch is {self.arch!r:.80} and the config's {self.config.MODEL.ARCH!r:.80}")
        if self.classes is None and self.config.SSL.TYPE is None:
            raise ValueError("it has a projector, and its config no SSL.TYPE")
        return self

    @property
    def net(self) -> Net:
        """Which net it is, and of what kind."""
        net = self.config.MODEL.net
        return net._replace(kind=kind_of(net, tuple(self.widths)))


def header(
    config: Config, cfg: Cfg, classes: int | None = None, width: Width | None = None,
    widths: Sequence[float] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """See `lowbit.train.configured.header_of`.

    Args:
        config: of the run.
        cfg: how pictures are shown.
        classes: of a classifier; 0: of a backbone; None: pretraining's encoder.
        width: that the batch-norm statistics are of; None: that of a training at one width, else none.
        widths: that were trained; None: as the config says.
    """
    widths = list(widths or config.trained_widths(labels=bool(classes)))
    if width is None and len(widths) == 1:
        width = widths[0]
    kind: dict[str, Any] = {"type": config.SSL.TYPE, "widths": widths, "width": width}
    if classes is not None:
        kind |= {"type": "classifier" if classes else "backbone", "classes": classes}
    return header_of("us3l", FORMAT, config, config.MODEL.net.name, cfg, **kind)


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: an ordinary net, or None if the checkpoint is not US3L's.

    Raises:
        InputError: it is, and is damaged; or a Vision Transformer below its full width.
    """
    said = read_header(checkpoint, "us3l", FORMAT, Us3lHeader)
    if said is not None:
        width = said.width or max(said.widths)
        return _plain(slimmable_of(said), width, has_statistics=said.width is not None or said.net.kind != "universal")
    theirs = None if "package" in checkpoint else authors.parse(checkpoint)
    if theirs is None or (theirs.net is None and not theirs.certain):
        return None
    try:
        net = authors.build(theirs)
        found = width_of_statistics(net)
    except InputError:
        if theirs.certain:
            raise
        return None  # `encoder_q` alone may be another method's
    switchable = theirs.net is not None and theirs.net.kind == "switchable"
    return _plain(net, found or 1.0, has_statistics=switchable or found is not None)


def slimmable_of(said: Us3lHeader) -> nn.Module:
    """The net of a checkpoint of ours, slimmable: an encoder with its projector, a classifier, or a backbone.

    Raises:
        InputError: the tensors are not those of the net that it names.
    """
    made = partial(_made, said)
    check_size(made, said.numbers)
    return load_state_(made(), behind(said.state_dict, "" if said.classes else ENCODER))


def _made(said: Us3lHeader) -> nn.Module:
    if said.classes is not None:
        return network(said.net, said.input_size, tuple(said.widths), said.classes)
    return encoder_of(said.config, said.input_size)


def _plain(net: nn.Module, width: Width, has_statistics: bool) -> nn.Module:
    plain = sub_network(net, width)
    return plain if has_statistics else without_statistics_(plain)
