"""Checkpoints of S2-BNN, ours and the authors', to nets; what ours say about themselves.

Of `main_moco`, `lowbit.load(path)` gives the encoder with its projector in the classifier's place, of `main_lincls` the
classifier, both with as much of them binary as the file says. The authors' files do not say it: `lowbit.load` reads
them as of step 2, as those that they published are, and says so; the commands ask for `--step`.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn

from lowbit.checkpoint.check import behind, load_state_, without_prefix
from lowbit.checkpoint.header import Header, PictureSize, read_header
from lowbit.errors import InputError, naming
from lowbit.models.create import check_size, create_model
from lowbit.models.heads import linear_classifier, projector_like
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.models.surgery import replace_
from lowbit.models.weight_file import BINARIZATION, CLASSES, Weights, read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.options import MOST_CLASSES
from lowbit.quant.binary import STEPS, binarize_
from s2bnn import authors

FORMAT = 1
ENCODER = authors.ENCODER
PREFIXES = {"keys.queue": "queue"}  # the authors' name of the queue; all other keys are the objective's own
PUBLISHED = 2  # step of the files that the authors published

log = logging.getLogger(__name__)


class S2bnnHeader(Header):
    """What ours say: also what of the net is binary, and always the size of the pictures."""

    input_size: PictureSize
    binarization: Annotated[int, Field(strict=True, ge=min(STEPS), le=max(STEPS))]


def header(arch: str, step: int, cfg: Mapping[str, Any], kind: str, classes: int | None = None) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`.

    Args:
        arch: timm name of the student.
        step: a key of `lowbit.quant.binary.STEPS`.
        cfg: how pictures are shown (`lowbit.models.pretrained_cfg`).
        kind: the method, or "classifier".
        classes: of a classifier; None: pretraining's encoder.
    """
    facts: dict[str, Any] = {"arch": arch, BINARIZATION: step, "type": kind, "input_size": cfg["input_size"]}
    facts |= {} if classes is None else {"classes": classes}
    return {"format": FORMAT, "package": "s2bnn", **facts, ENTRY: cfg}


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the encoder or the classifier, or None if the checkpoint is not S2-BNN's.

    Raises:
        InputError: it is, and is damaged.
    """
    said = read_header(checkpoint, "s2bnn", FORMAT, S2bnnHeader)
    if said is not None:
        inner = behind(said.state_dict, ENCODER) if said.classes is None else said.state_dict
        return _network(said.arch, said.binarization, inner, said.classes)
    state = checkpoint.get("state_dict", checkpoint)
    if "package" in checkpoint or not isinstance(state, Mapping) or not authors.is_reactnet(state):
        return None
    if not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError("the checkpoint's state_dict holds other things than tensors; name another file")
    state = without_prefix(state, authors.PREFIX)
    state = behind(state, ENCODER) or dict(state)
    log.warning("a ReActNet-A of the authors: their files do not say the step, it is read as of step %d", PUBLISHED)
    own = create_model(authors.NETS[0], num_classes=0).state_dict().keys()
    head = state.get("fc.weight")
    classes = None if head is None or head.dim() != 2 else len(head)
    return _network(authors.NETS[0], PUBLISHED, authors.used(state, own), classes)


def _network(arch: str, step: int, state: Mapping[str, Tensor], classes: int | None) -> nn.Module:
    """A net of exactly these tensors; without `classes` what stands in its last layer's place is as they are."""

    def made() -> nn.Module:
        net = binarize_(create_model(arch, num_classes=classes or 1), step)
        if classes is None:
            name, _ = linear_classifier(net)
            replace_(net, {name: head_like(behind(state, f"{name}."))})
        return net

    check_size(made, sum(value.numel() for value in state.values()))
    return load_state_(made(), state)


def head_like(state: Mapping[str, Tensor]) -> nn.Module:
    """What stands in the last layer's place, by its tensors: a projector, or one linear layer."""
    weight = state.get("weight")
    if weight is not None and weight.dim() == 2:  # the authors', without --mlp
        return nn.Linear(weight.shape[1], weight.shape[0])
    return projector_like(state)


@dataclass(frozen=True)
class Student:
    """A net out of any file.

    Attributes:
        model: in evaluation mode. arch: its timm name. step: what of it is binary.
        said: what the file says beside its tensors.
    """

    model: nn.Module
    arch: str
    step: int
    said: Mapping[str, Any]


def open_student(
    path: Path | str, arch: str | None = None, step: int | None = None, classes: int | None = 0
) -> Student:
    """Read any file (`lowbit.models.weights`) as a net at its step.

    Args:
        path: a checkpoint of ours or the authors', a backbone, or other weights.
        arch: timm name, where the file does not say (`--student`).
        step: where the file does not say (`--step`).
        classes: of its last layer; 0: without one; None: as the file has it, without where that is a projector.

    Raises:
        InputError: it cannot be read, nobody says which net or step it is, it says another one, or its tensors are not
            those of the net.
    """
    weights = read_weights(path)
    with naming(path):
        said = read_header(weights.content, "s2bnn", FORMAT, S2bnnHeader)
    theirs = not weights.ours and authors.is_reactnet(weights.tensors)
    known = (arch if arch in authors.NETS else authors.NETS[0]) if theirs else None
    name = weights.choose_arch(arch, known, "--student")
    step = _step_of(weights, None if said is None else said.binarization, step)
    classes = _classes_of(weights) if classes is None else classes

    def made() -> nn.Module:
        return binarize_(create_model(name, num_classes=classes), step)

    check_size(made, sum(value.numel() for value in weights.tensors.values()))
    model = made()
    branch = branch_of(weights, model)
    branch = branch._replace(state=authors.used(branch.state, model.state_dict())) if theirs else branch
    load_(model, weights, branch)
    return Student(model.eval(), name, step, weights.said)


def _classes_of(weights: Weights) -> int:
    """Of the classifier in a file; 0: it has none, or does not say."""
    stated = weights.said.get(CLASSES, 0) if weights.ours else None
    if stated is None:
        keys = (f"{prefix}fc.weight" for prefix in ("", "state_dict.", f"state_dict.{authors.PREFIX}"))
        stated = next((len(weights.tensors[key]) for key in keys if key in weights.tensors), 0)
    if type(stated) is not int or not 0 <= stated <= MOST_CLASSES:
        raise InputError(f"{weights.name}: it says {stated!r:.40} classes, which is damaged; name another file")
    return stated


def _step_of(weights: Weights, recorded: int | None, step: int | None) -> int:
    """What the file says, or where it does not what the caller says.

    Raises:
        InputError: neither does, or they disagree.
    """
    if recorded is None and weights.ours:
        recorded = weights.said.get(BINARIZATION, 0)  # a real-valued net of any method says nothing
    if None not in (recorded, step) and recorded != step:
        raise InputError(f"{weights.name}: it is of step {recorded!r:.20}, not {step}: leave out --step")
    found = step if recorded is None else recorded
    if found is None:
        raise InputError(
            f"{weights.name}: it does not say what of it is binary: give --step 1 (activations) or 2 (weights, too), "
            "or 0 of a real-valued net"
        )
    return found
