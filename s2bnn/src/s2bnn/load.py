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
from lowbit.models.create import check_size, classifiers, create_model
from lowbit.models.heads import end_like_
from lowbit.models.pretrained_cfg import ENTRY, set_pretrained_cfg_
from lowbit.models.weight_file import BINARIZATION, Weights, read_weights
from lowbit.models.weights import branch_of, load_
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
    """What every checkpoint of ours says beside `state_dict`; `kind`: the method, or "classifier" (of `classes`)."""
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
    log.warning("a ReActNet-A of the authors: their files do not say the step, it is read as of step %d", PUBLISHED)
    own = create_model(authors.NETS[0], num_classes=0).state_dict().keys()
    return _network(authors.NETS[0], PUBLISHED, authors.used(behind(state, ENCODER) or dict(state), own))


def _network(arch: str, step: int, state: Mapping[str, Tensor], classes: int | None = None) -> nn.Module:
    """A net of exactly these tensors; without `classes` it ends as they do."""

    def made() -> nn.Module:
        net = binarize_(create_model(arch, num_classes=classes or 1), step)
        return end_like_(net, state) if classes is None else net

    check_size(made, sum(value.numel() for value in state.values()))
    return load_state_(made(), state)


@dataclass(frozen=True)
class Student:
    """A net out of any file.

    Attributes:
        model: in evaluation mode. arch: its timm name. step: what of it is binary.
        said: what a file of ours says beside its tensors.
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
        record = read_header(weights.content, "s2bnn", FORMAT, S2bnnHeader)
    theirs = not weights.ours and authors.is_reactnet(weights.tensors)
    known = (arch if arch in authors.NETS else authors.NETS[0]) if theirs else None
    name = weights.choose_arch(arch, known, "--student")
    step = _step_of(weights, None if record is None else record.binarization, step)

    def made(classes: int | None) -> nn.Module:
        return binarize_(create_model(name, num_classes=classes or 0), step)

    check_size(lambda: made(classes), sum(value.numel() for value in weights.tensors.values()))
    model = made(classes)
    branch = branch_of(weights, model)
    if classes is None and branch.plain:
        ends = (branch.state.get(f"{start}weight") for start in classifiers(model))
        model = made(next((len(end) for end in ends if end is not None and end.dim() == 2), 0))
    branch = branch._replace(state=authors.used(branch.state, model.state_dict())) if theirs else branch
    load_(model, weights, branch)
    said = weights.said if weights.ours else {}
    with naming(path):
        return Student(set_pretrained_cfg_(model.eval(), said.get(ENTRY)), name, step, said)


def _step_of(weights: Weights, recorded: int | None, step: int | None) -> int:
    """What the file says, or where it does not what the caller says; refused where neither does, or they disagree."""
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
