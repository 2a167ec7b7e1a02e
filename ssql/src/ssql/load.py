"""Checkpoints of SSQL, ours and the authors', to nets; what ours say about themselves.

Of `ssl`, `lowbit.load(path)` gives the encoder with its projector in the classifier's place, quantized layers in mode
`float`: set bits and mode with `lowbit.quant.bitwidths`, or take features with `lowbit.evaluate.features.pooled`. Of
`linear` and `default` it gives the classifier, at the bits that it was evaluated at.
"""

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowbit.checkpoint.check import load_state_
from lowbit.checkpoint.header import check_format, description, is_of, picture_size
from lowbit.config.tree import dump_config
from lowbit.errors import InputError
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.train.protocol import Objective
from lowbit.train.state import on_cpu, rename
from ssql import authors
from ssql.config import Config
from ssql.methods import build, classifier

FORMAT = 1
ENCODER = authors.ENCODER
PREFIXES = {"keys.queue": "queue"}  # the authors' names of MoCo's queue; all other keys are the objective's own
MAX_CLASSES = 10**6


def header(config: Config, cfg: Mapping[str, Any], classes: int | None = None) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`; paths of the run are left out.

    Args:
        config: of the run.
        cfg: how pictures are shown (`lowbit.models.pretrained_cfg`).
        classes: of a classifier; None: pretraining's encoder.
    """
    said = dump_config(config)
    said["OUTPUT"], said["MODEL"]["CHECKPOINT"] = "", ""
    facts: dict[str, Any] = {"arch": config.MODEL.ARCH, "type": config.SSL.TYPE, "input_size": cfg["input_size"]}
    if classes is not None:
        facts |= {"type": "classifier", "classes": classes}
    return {"format": FORMAT, "package": "ssql", **facts, ENTRY: cfg, "config": said}


def state_dict(objective: Objective) -> dict[str, Tensor]:
    """The tensors of a checkpoint, on the CPU, under the keys of the file."""
    return dict(rename(on_cpu(objective.state_dict()), PREFIXES))


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the encoder or the classifier, or None if the checkpoint is not SSQL's.

    Raises:
        InputError: it is, and is damaged.
    """
    if is_of(checkpoint, "ssql", FORMAT):
        return _ours(checkpoint, checkpoint["state_dict"])
    theirs = None if "package" in checkpoint else authors.parse(checkpoint)
    if theirs is None:
        return None
    try:
        return authors.build(theirs)
    except InputError:
        if theirs.wrapped:
            raise
        return None  # `encoder_q` alone may be another method's


def _ours(checkpoint: Mapping[str, Any], state: Mapping[str, Tensor]) -> nn.Module:
    config, size = config_and_size(checkpoint)
    classes = checkpoint.get("classes")
    if classes is not None and not (type(classes) is int and 0 < classes <= MAX_CLASSES):
        raise InputError(f"the checkpoint says that it has {classes!r:.80} classes; name another file")
    net: nn.Module = build(config, size).encoder_q if classes is None else classifier(config, size, classes)
    prefix = ENCODER if classes is None else ""
    return load_state_(net, {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)})


def config_and_size(checkpoint: Mapping[str, Any]) -> tuple[Config, tuple[int, int, int]]:
    """The config and the size of pictures that a checkpoint of ours names.

    Raises:
        InputError: of a later version, or not what we write.
    """
    check_format(checkpoint, FORMAT, "ssql")
    with description():
        config = Config.model_validate_json(json.dumps(checkpoint["config"]))
        return config, picture_size(checkpoint["input_size"])
