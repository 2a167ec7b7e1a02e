"""Any file to the weights of a net.

Every tensor of the backbone has to be in the file (batch norm's counters excepted), in the net's shape and as floating
point. What stands beside it is left out: heads, projectors, predictors, queues, state of quantizers at activations.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.checkpoint.check import check_kinds, first_bad
from lowbit.errors import InputError
from lowbit.models.create import check_size, classifiers, create_model
from lowbit.models.layouts import Branch, choose
from lowbit.models.weight_file import BINARIZATION, Weights, read_weights

COUNTER = "num_batches_tracked"
SHOWN = 3  # keys in a message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Backbone:
    """A net without its last layer, out of a file.

    Attributes:
        model: a timm net of 0 classes, float, in evaluation mode.
        arch: its timm name.
        said: what the file says beside its tensors.
    """

    model: nn.Module
    arch: str
    said: Mapping[str, Any]


def open_backbone(path: Path | str, arch: str | None = None) -> Backbone:
    """The backbone in any file.

    Args:
        path: the file.
        arch: timm name; needed where the file does not say.

    Raises:
        InputError: it cannot be read, nobody says which net it is, or its tensors are not all those of the net.
    """
    return backbone_of(read_weights(path), arch)


def backbone_of(weights: Weights, arch: str | None = None) -> Backbone:
    """The same from what was read."""
    if weights.ours and weights.said.get(BINARIZATION):
        raise InputError(f"{weights.name}: it is a binary net, and a real-valued one is needed: name another file")
    name = weights.choose_arch(arch)
    with torch.random.fork_rng(devices=[]):
        numbers = sum(value.numel() for value in weights.tensors.values())
        check_size(lambda: create_model(name, num_classes=0), numbers)
        model = create_model(name, num_classes=0)
    load_(model, weights, branch_of(weights, model))
    return Backbone(model.eval(), name, weights.said)


def branch_of(weights: Weights, model: nn.Module) -> Branch:
    """The encoder of a file that is read into a net.

    Raises:
        InputError: see `lowbit.models.layouts.choose`.
    """
    try:
        return choose(weights.tensors, model)
    except InputError as error:
        raise InputError(f"{weights.name}: {error}") from error


def load_(
    model: nn.Module,
    weights: Weights,
    branch: Branch,
    *,
    new_head: bool = False,
    projector: bool = False,
    may_lack: Callable[[str], bool] = lambda key: False,
) -> None:
    """Give a net the weights of a file.

    Args:
        model: a timm net, with or without a classifier.
        weights: of the file.
        branch: of `branch_of`.
        new_head: a classifier that the file lacks, or has for another number of classes, stays as the net has it.
        projector: the net ends as the file does, also where that is a method's projector.
        may_lack: keys that stay as the net has them where the file has none.

    Raises:
        InputError: tensors that are missing, of another shape or kind, not finite, or of another net.
    """
    own, heads = model.state_dict(), classifiers(model)
    drawn = {key for key in own if key.startswith(heads)}
    if (branch.plain or projector) and _has_head(branch, own, drawn):
        drawn = set()
    given = {key: branch.state[key] for key in own if key in branch.state and key not in drawn}
    needed = [key for key in own if not (key in drawn or key.endswith(COUNTER) or may_lack(key))]
    try:
        if drawn and not new_head:
            raise InputError(_no_head(branch, own, drawn))
        _check_fit(branch, model, given, not weights.ours, [key for key in needed if key not in given])
    except InputError as error:
        other = f" (the file says that it is a {weights.arch})" if weights.arch not in (None, _name(model)) else ""
        raise InputError(f"{weights.name}: {error}{other}") from error
    _report(branch, weights.name, {t.dtype for key, t in given.items() if t.dtype != own[key].dtype}, drawn)
    model.load_state_dict({**own, **given})


def _report(branch: Branch, name: str, converted: set[torch.dtype], drawn: set[str]) -> None:
    """A log line of each choice."""
    if branch.others or not branch.plain or branch.averaged:
        others = ", ".join(other or "no prefix" for other in branch.others)
        left = f" (left out: the one under {others})" if others else ""
        log.info("%s: the encoder under %s is read%s", name, branch.prefix or "no prefix", left)
    if converted:
        log.info("%s: weights in %s are converted", name, " and ".join(sorted(str(dtype)[6:] for dtype in converted)))
    if drawn:
        log.warning("%s: the last layer (%s) is drawn, the file has none that fits", name, min(drawn))


def _has_head(branch: Branch, own: Mapping[str, Tensor], head: set[str]) -> bool:
    return all(key in branch.state and branch.state[key].shape == own[key].shape for key in head)


def _no_head(branch: Branch, own: Mapping[str, Tensor], head: set[str]) -> str:
    keys = sorted(head, key=lambda key: (-own[key].dim(), key))
    key = next((key for key in keys if key in branch.state and branch.state[key].shape != own[key].shape), keys[0])
    classes = own[key].shape[0]
    if branch.plain and key in branch.state:
        there = branch.state[key].shape[0]
        return f"it is a net of {there} classes, and {classes} are needed: choose the data that it was trained on"
    return f"it holds a backbone without the last layer ({key}, {classes} classes), which is not trained here"


def _check_fit(
    branch: Branch, model: nn.Module, given: Mapping[str, Tensor], convert: bool, lacking: list[str]
) -> None:
    """Refuse what is not exactly the net; half precision where nothing is to be converted.

    Raises:
        InputError: the first that is wrong.
    """
    own, name = model.state_dict(), _name(model)
    strange = list(_strange(branch.state, model))
    if lacking:
        has = f"; it has {_some(strange)}" if strange else ""
        raise InputError(f"it lacks {_some(lacking)} of a {name}{has}")
    if strange:
        raise InputError(f"it has {_some(strange)}, which a {name} has not")
    for key, tensor in given.items():
        if tensor.shape != own[key].shape:
            shapes = f"{tuple(tensor.shape)}, in a {name} {tuple(own[key].shape)}"
            raise InputError(f"its {key} has the shape {shapes}")
    check_values(given)
    wide = {key: value.float() if convert and value.is_floating_point() else value for key, value in given.items()}
    check_kinds(wide, {key: value for key, value in own.items() if not (convert and key.endswith(COUNTER))})


def check_values(given: Mapping[str, Tensor]) -> None:
    """Refuse tensors that cannot be copied from, and weights that a diverged run left.

    Raises:
        InputError: the first that is sparse, has no values, or holds NaN or infinity.
    """
    for key, tensor in given.items():
        if tensor.layout != torch.strided or tensor.is_meta:
            raise InputError(f"its {key} is {'without values' if tensor.is_meta else 'sparse'}: save it dense")
    found = first_bad({key: value for key, value in given.items() if value.is_floating_point()})
    if found is not None:
        raise InputError(f"it holds NaN or infinity in {found}: that run diverged; name another file")


def _strange(state: Mapping[str, Tensor], model: nn.Module) -> Iterator[str]:
    """Keys inside the backbone that the net does not have: it is another net's file.

    Not so the state of a quantizer in the place of a module without tensors, nor buffers that nets do not save.
    """
    own, heads = model.state_dict(), classifiers(model)
    inside = {key.partition(".")[0] for key in own if not key.startswith(heads)}
    modules, unsaved = dict(model.named_modules()), dict(model.named_buffers())
    for key in state:
        if key in own or key in unsaved or key.startswith(heads):
            continue
        parts = key.split(".")
        place = next(name for end in range(len(parts), -1, -1) if (name := ".".join(parts[:end])) in modules)
        leaf = bool(place) and not [*modules[place].children(), *modules[place].state_dict()]
        if parts[0] in inside and not leaf:
            yield key


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:SHOWN]) + (f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else "")


def _name(model: nn.Module) -> str:
    return str((getattr(model, "pretrained_cfg", None) or {}).get("architecture") or type(model).__name__)
