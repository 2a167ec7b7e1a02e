"""From the options of `main_moco` to its objective: student, teacher, queues, and the weights of the step before."""

import logging
import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lowbit.checkpoint.check import behind
from lowbit.errors import InputError
from lowbit.losses.queue import KeyQueue
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, attach_projector_, build_heads
from lowbit.models.surgery import of_kind, run_blank
from lowbit.models.weight_file import BINARIZATION, read_weights
from lowbit.models.weights import branch_of, check_values
from lowbit.quant.binary import binarize_, blind_layers
from lowbit.train.state import rename, saved_state
from s2bnn.load import ENCODER, PREFIXES, used
from s2bnn.objective import S2bnn
from s2bnn.optim import optimizer
from s2bnn.options import PretrainOptions
from s2bnn.teacher import open_teacher

COPY = "encoder_k."
log = logging.getLogger(__name__)


def student_of(own: PretrainOptions, size: tuple[int, int, int]) -> nn.Module:
    """The student at its step, with MoCo's head, whose hidden layer is as wide as the features, and stays real."""
    net = binarize_(create_model(own.student, num_classes=1), own.step)
    attach_projector_(net, lambda width: build_heads(HEADS["MoCo"], width, own.moco_dim, width, mlp=own.mlp))
    run_blank(net, size, setting="--image-size")
    blind = blind_layers(net, size)
    if blind:
        log.warning(
            "%s: %d of its binary layers (%s, ...) see no negative number, so that all their inputs become +1 (it has "
            "a ReLU as a function): another --student learns more", own.student, len(blind), blind[0],
        )  # fmt: skip
    return net


def build(own: PretrainOptions, size: tuple[int, int, int], seed: int = 0) -> tuple[S2bnn, dict[str, str]]:
    """The objective, drawn from the seed (queues too), and facts about its teacher.

    Raises:
        InputError: an unknown net, one that cannot be binarized, has no linear classifier or takes no pictures of
            `size` (C, H, W); see `open_teacher`.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    student, keys, teacher, projector, teacher_keys = student_of(own, size), None, None, None, None
    facts: dict[str, str] = {}
    if own.contrasts:
        keys = KeyQueue(own.moco_dim, own.moco_k, generator)
    if own.distils:
        with torch.random.fork_rng(devices=[]):
            teacher, dim, what = open_teacher(own, size)
        facts["teacher"] = f"{own.arch}, {what} of {dim} channels"
        if dim != own.moco_dim:
            projector = nn.Linear(own.moco_dim, dim)
            facts["projector"] = f"linear, from --moco-dim {own.moco_dim} to the teacher's {dim} channels"
        teacher_keys = KeyQueue(dim, own.moco_k, generator) if own.over == "queue" else None
    objective = S2bnn(
        student, partial(optimizer, own, "adam"), temperature=own.moco_t, keys=keys, momentum=own.moco_m,
        teacher=teacher, projector=projector, teacher_temperature=own.teacher_t, teacher_keys=teacher_keys, kl=own.kl,
    )  # fmt: skip
    return objective, facts


def start_from_(objective: S2bnn, path: Path, student: str) -> None:
    """Give an objective every tensor of a checkpoint that it has, too: of the step before, ours or the authors'.

    The whole student has to be in the file, with its head, but for slopes in the places of a real-valued net's ReLUs. A
    key encoder that is not starts as the student's copy; a queue or a projector that is not stays as drawn. The
    optimizer starts anew.

    Raises:
        InputError: it cannot be read, is of another net, or its tensors have other shapes.
    """
    try:
        weights = read_weights(path)
        weights.choose_arch(student, flag="--student")
        prefix, net = branch_of(weights, objective.encoder_q).prefix, objective.encoder_q.state_dict().keys()
        given = _tensors(weights.tensors, prefix, net)
        own = dict(rename(saved_state(objective), PREFIXES))
        was = weights.said.get(BINARIZATION, 0) if weights.ours else None
        slopes = of_kind(objective.encoder_q, nn.PReLU) if was == 0 else ()  # a real-valued net may have ReLUs
        _check(own, given, {f"{ENCODER}{name}.weight" for name in slopes})
    except InputError as error:
        raise InputError(f"--model-path {path}: {str(error).removeprefix(f'{path}: ')}") from error
    with torch.no_grad():
        for key, tensor in own.items():
            if key in given:
                tensor.copy_(given[key])
        if objective.encoder_k is not None and not any(key.startswith(COPY) for key in given):
            objective.encoder_k.load_state_dict(objective.encoder_q.state_dict())
    left = sorted({key.partition(".")[0] for key in given if key not in own})
    log.info("%s: of step %s; left out: %s", path, "not said" if was is None else was, ", ".join(left) or "nothing")


def _tensors(tensors: Mapping[str, Tensor], prefix: str, net: Collection[str]) -> dict[str, Tensor]:
    """Those of an objective by its own keys, out of a file whose student stands behind a prefix; `net`: its keys."""
    if not prefix.endswith(ENCODER):
        raise InputError("it is no checkpoint of main_moco (no encoder_q): name one of the step before")
    found = behind(tensors, prefix.removesuffix(ENCODER))
    for place in (ENCODER, COPY):
        kept = used(behind(found, place), net)
        found = {key: value for key, value in found.items() if not key.startswith(place)}
        found |= {place + re.sub(r"^fc\.(weight|bias)$", r"fc.0.\1", key): value for key, value in kept.items()}
    return found


def _check(own: Mapping[str, Tensor], given: Mapping[str, Tensor], may_lack: Collection[str]) -> None:
    """Refuse what is not the student, of another shape, or no numbers."""
    for key, tensor in own.items():
        if key not in given and key.startswith(ENCODER) and key not in may_lack:
            raise InputError(f"it lacks {key}: give the --student and --mlp that it was trained with")
        if key in given and given[key].shape != tensor.shape:
            shapes = f"{tuple(given[key].shape)}, here {tuple(tensor.shape)}"
            raise InputError(f"its {key} has the shape {shapes}: give the --moco-dim and --moco-k that it has")
    check_values({key: given[key] for key in own if key in given})
