"""Checkpoints of S2-BNN, ours and the authors', to nets; what ours say about themselves.

Of `main_moco`, `lowbit.load(path)` gives the encoder with its projector in the classifier's place, of `main_lincls` the
classifier, both with as much of them binary as the file says.

The authors' files hold their ReActNet-A under `module.encoder_q.<key>`, beside `encoder_k.*` and `queue`, or under
`module.<key>` with a classifier; each block also holds the point-wise convolutions that it does not use, with batch
norm. Their `arch` is always "resnet50" and says nothing. Weights of step 1 and of step 2 have the same keys and shapes,
and no file says which they are: `lowbit.load` refuses them, the commands and `open_student` are told the step.
"""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field
from torch import Tensor, nn

from lowbit.checkpoint.check import behind, load_state_
from lowbit.checkpoint.header import Header, PictureSize, read_header
from lowbit.errors import InputError, naming
from lowbit.models.create import check_size, classifiers, create_model
from lowbit.models.heads import end_like_
from lowbit.models.pretrained_cfg import ENTRY, set_pretrained_cfg_
from lowbit.models.weight_file import BINARIZATION, Weights, read_weights
from lowbit.models.weights import branch_of, load_
from lowbit.quant.binary import STEPS, binarize_

FORMAT = 1
ENCODER = "encoder_q."
PREFIXES = {"keys.queue": "queue"}  # the authors' name of the queue; all other keys are the objective's own
NETS = ("reactnet_a", "reactnet_a_64", "reactnet_a_32")  # whose weights have equal names and shapes
FIRST = ("feature.0.conv1.weight", "feature.1.binary_3x3.weight")  # of theirs
UNUSED = re.compile(r"feature\.\d+\.(binary_pw|binary_pw_down[12]|bn2|bn2_[12])\.\w+")


class S2bnnHeader(Header):
    """What ours say: also what of the net is binary, and always the size of the pictures."""

    input_size: PictureSize
    binarization: Annotated[int, Field(strict=True, ge=min(STEPS), le=max(STEPS))]


def header(arch: str, step: int, cfg: Mapping[str, Any], kind: str, classes: int | None = None) -> dict[str, Any]:
    """What every checkpoint of ours says beside `state_dict`; `kind`: the method, or "classifier" (of `classes`)."""
    facts: dict[str, Any] = {"arch": arch, BINARIZATION: step, "type": kind, "input_size": cfg["input_size"]}
    facts |= {} if classes is None else {"classes": classes}
    return {"format": FORMAT, "package": "s2bnn", **facts, ENTRY: cfg}


def is_reactnet(keys: Collection[str]) -> bool:
    """Whether a file's tensors, by their dotted places, are a ReActNet's."""
    return all(any(key == first or key.endswith("." + first) for key in keys) for first in FIRST)


def used(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """The tensors of a net, whose keys are `own`, without those that the authors' blocks do not use."""
    return {key: value for key, value in state.items() if key in own or not UNUSED.fullmatch(key)}


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the encoder or the classifier, or None if the checkpoint is not S2-BNN's.

    Raises:
        InputError: it is, and is damaged, or is the authors', which does not say its step.
    """
    said = read_header(checkpoint, "s2bnn", FORMAT, S2bnnHeader)
    if said is None:
        state = checkpoint.get("state_dict", checkpoint)
        if "package" not in checkpoint and isinstance(state, Mapping) and is_reactnet(state):
            raise InputError(
                "it is of the authors' program and does not say whether its weights are binary: `s2bnn export FILE "
                "--step 2 --format float` (or --step 1) makes a file that does"
            )
        return None
    state = behind(said.state_dict, ENCODER) if said.classes is None else said.state_dict

    def made() -> nn.Module:
        net = binarize_(create_model(said.arch, num_classes=said.classes or 1), said.binarization)
        return end_like_(net, state) if said.classes is None else net

    check_size(made, said.numbers)
    return load_state_(made(), state)


class Student(NamedTuple):
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
    theirs = not weights.ours and is_reactnet(weights.tensors)
    known = (arch if arch in NETS else NETS[0]) if theirs else None
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
    load_(model, weights, branch._replace(state=used(branch.state, model.state_dict())))
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
