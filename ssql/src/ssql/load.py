"""Checkpoints of SSQL, ours and the authors', to nets; what ours say about themselves.

Of `ssl`, `lowbit.load(path)` gives the encoder with its projector in the classifier's place, quantized layers in mode
`float`: set bits and mode with `lowbit.quant.bitwidths`, or take features with `lowbit.evaluate.features.pooled`. Of
`linear` and `default` it gives the classifier, at the bits that it was evaluated at.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Annotated, Any

from pydantic import BeforeValidator
from torch import Tensor, nn

from lowbit.checkpoint.check import behind, load_state_
from lowbit.checkpoint.header import Header, PictureSize, read_header
from lowbit.errors import InputError
from lowbit.models.create import check_size
from lowbit.models.pretrained_cfg import Cfg
from lowbit.train.configured import header_of
from lowbit.train.protocol import Objective
from lowbit.train.state import on_cpu, rename
from ssql import authors
from ssql.config import Config
from ssql.methods import build, classifier

FORMAT = 1
ENCODER = authors.ENCODER
PREFIXES = {"keys.queue": "queue"}  # the authors' names of MoCo's queue; all other keys are the objective's own


class SslHeader(Header):
    """What ours say: also the config, and always the size of the pictures."""

    input_size: PictureSize
    config: Annotated[Config, BeforeValidator(lambda said: Config.model_validate_json(json.dumps(said)))]


def header(config: Config, cfg: Cfg, classes: int | None = None) -> dict[str, Any]:
    """See `lowbit.train.configured.header_of`; `classes` of a classifier, None: pretraining's encoder."""
    kind = {"type": config.SSL.TYPE} if classes is None else {"type": "classifier", "classes": classes}
    return header_of("ssql", FORMAT, config, config.MODEL.ARCH, cfg, **kind)


def state_dict(objective: Objective) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under the keys of the file."""
    return dict(rename(on_cpu(objective.state_dict()), PREFIXES))


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the encoder or the classifier, or None if the checkpoint is not SSQL's.

    Raises:
        InputError: it is, and is damaged.
    """
    said = read_header(checkpoint, "ssql", FORMAT, SslHeader)
    theirs = None if "package" in checkpoint else authors.parse(checkpoint)
    if said is not None or theirs is None:
        return None if said is None else _ours(said)
    try:
        return authors.build(theirs)
    except InputError:
        if theirs.wrapped:
            raise
        return None  # `encoder_q` alone may be another method's


def _ours(said: SslHeader) -> nn.Module:
    of = (said.config, said.input_size)
    made = partial(build, *of) if said.classes is None else partial(classifier, *of, said.classes)
    check_size(made, said.numbers)
    net: Any = made()
    net, prefix = (net.encoder_q, ENCODER) if said.classes is None else (net, "")
    return load_state_(net, behind(said.state_dict, prefix))
