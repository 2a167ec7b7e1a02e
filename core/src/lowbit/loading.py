"""`lowbit.load(path)`: the net of any checkpoint or export of any installed method.

Methods register a function (checkpoint dict -> net, or None if it is not theirs) in the entry point group
`lowbit.methods`; core knows none of them by name.
"""

from collections.abc import Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from lowbit.checkpoint.header import stated_figures
from lowbit.checkpoint.read import is_safetensors, read_checkpoint
from lowbit.errors import InputError
from lowbit.export.packed import open_packed
from lowbit.models.create import check_size, create_model
from lowbit.models.pretrained_cfg import ENTRY, NAMES, set_pretrained_cfg_
from lowbit.models.resized import resize_
from lowbit.models.weight_file import BINARIZATION, CLASSES, SIZES, Weights, read_weights
from lowbit.models.weights import backbone_of, branch_of, load_
from lowbit.options import MOST_CLASSES
from lowbit.quant.binary import binarize_

GROUP = "lowbit.methods"
LARGER = 64  # times a slimmed net at most: at an eighth of the width
CODED = "coded"  # in `Opened.said` of a packed file: {key of a tensor: its bits, ...}
CLASSIFIER = "classifier"  # as `type` in checkpoints of methods that also write encoders


class Opened(NamedTuple):
    """A net out of a file.

    Attributes:
        model: as `load` gives it.
        kind: "checkpoint", "packed" or "float" (an export to safetensors).
        said: what the file says beside its tensors.
        figures: what it says of this very net, such as `top1`.
    """

    model: nn.Module
    kind: str
    said: Mapping[str, Any]
    figures: Mapping[str, float] = MappingProxyType({})

    @property
    def outputs(self) -> int:
        """Classes that the net tells apart; 0: it has no classifier (a backbone, or an encoder with its projector)."""
        if self.said.get("type", CLASSIFIER) != CLASSIFIER or not hasattr(self.model, "get_classifier"):
            return 0
        last: Any = self.model.get_classifier()  # type: ignore[operator]  # timm's
        last = last[0] if isinstance(last, tuple) else last
        found = getattr(last, "out_features", getattr(last, "out_channels", 0))
        return found if isinstance(found, int) else 0

    @property
    def classes(self) -> tuple[str, ...]:
        """Their names, in the order of the net's outputs; their numbers where the file states none."""
        names = (getattr(self.model, "pretrained_cfg", None) or {}).get(NAMES) or ()
        outputs = self.outputs
        return tuple(names) if len(names) == outputs else tuple(str(number) for number in range(outputs))


def load(path: Path | str) -> nn.Module:
    """Build the net of a file, in evaluation mode on the CPU; its `pretrained_cfg` says how pictures are shown to it.

    Args:
        path: a checkpoint (`*.pth.tar`), a packed export, a `backbone.safetensors` or another export to safetensors.

    Raises:
        InputError: missing, damaged, or of no installed method; no code of the file is run.
    """
    return open_file(path).model


def open_file(path: Path | str) -> Opened:
    """Likewise, with what else the file says.

    Raises:
        InputError: as `load`.
    """
    path = Path(path)
    if is_safetensors(path):
        weights = read_weights(path)
        with torch.random.fork_rng(devices=[]):  # building a net draws weights
            if not weights.ours:
                model, head = open_packed(path)
                return Opened(model, "packed", {**head["recipe"], "format": head["format"], CODED: head["coded"]})
            return Opened(_described(_network(weights), weights.said.get(ENTRY), path), "float", weights.said)
    checkpoint = read_checkpoint(path)
    methods = entry_points(group=GROUP)
    for method in methods:
        try:
            with torch.random.fork_rng(devices=[]):
                net: nn.Module | None = method.load()(checkpoint)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
        if net is not None:
            model, said = _described(net.eval(), checkpoint.get(ENTRY), path), Weights(str(path), checkpoint).said
            return Opened(model, "checkpoint", said, stated_figures(checkpoint))
    package = checkpoint.get("package")
    needed = f"install the package lowbit-{package}" if package else "it names no package; name another file"
    raise InputError(
        f"{path} belongs to none of the installed methods ({', '.join(m.name for m in methods) or 'none'}): {needed}"
    )


def _network(weights: Weights) -> nn.Module:
    """The net of a float export: of a whole net with the last layer, the sizes and the step that the file states.

    Raises:
        InputError: what it states is no net, or its tensors are not all those of the net.
    """
    classes, sizes = weights.said.get(CLASSES, 0), weights.said.get(SIZES) or {}
    if not (sizes or classes or BINARIZATION in weights.said):
        return backbone_of(weights).model
    try:
        if type(classes) is not int or not 0 <= classes <= MOST_CLASSES:
            raise ValueError(f"{classes!r} classes")
        create = partial(create_model, weights.choose_arch(None), num_classes=classes)
        check_size(create, LARGER * sum(value.numel() for value in weights.tensors.values()))
        model = binarize_(resize_(create(), sizes), weights.said.get(BINARIZATION, 0))
    except (InputError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{weights.name}: its description of its net is wrong ({reason}); name another") from error
    load_(model, weights, branch_of(weights, model))
    return model.eval()


def _described(model: nn.Module, said: object, path: Path) -> nn.Module:
    try:
        return set_pretrained_cfg_(model, said)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
