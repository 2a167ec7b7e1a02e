"""Linear evaluation: a classifier trained on a frozen net, or fine-tuning of the whole net; its figures on the way.

He et al., CVPR 2020 (arXiv 1911.05722), Sec. 4.1: the net stays in evaluation mode, only its last layer is trained.
A command builds its net, brings it to its bits or width, and puts the parts below together.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import reestimated_batchnorm
from lowbit.evaluate.cached import FromFeatures
from lowbit.evaluate.classify import Batches, Scores, classify
from lowbit.models.heads import linear_classifier
from lowbit.train.epochs import Due
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.session import Session
from lowbit.train.supervised import Supervised


def linear_probe(net: nn.Module, optimizer: Callable[[nn.Module], Optimizer]) -> Supervised:
    """Cross-entropy of a net's last layer alone: the rest is frozen, in place, and stays in evaluation mode.

    Args:
        net: timm's, of pictures (B, C, H, W); batches of its features (B, D) are taken, too
            (`lowbit.evaluate.cached`).
        optimizer: builds the optimizer of what is trained.

    Raises:
        InputError: the net does not end in one linear layer.
    """
    _, head = linear_classifier(net)
    net.requires_grad_(False)
    head.requires_grad_(True)
    objective = Supervised(FromFeatures(net), optimizer)
    objective.frozen = ("student.net",)
    return objective


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values: what a run started from, so that it is resumed with the same."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode() + b"\0" + tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def option_of(checkpoint: Mapping[str, Any], name: str) -> Any:
    """What a run's checkpoint says of one of its options; None where it is damaged, which is found later."""
    run = checkpoint.get("run")
    options = run.get("options") if isinstance(run, Mapping) else None
    return options.get(name) if isinstance(options, Mapping) else None


def matching_classifier(net: nn.Module, other: nn.Module, described: str) -> dict[str, Tensor]:
    """The last layer of a net that was evaluated before, under this net's keys.

    Args:
        net: that takes it.
        other: that has it.
        described: the other, for the message.

    Raises:
        InputError: the other net does not end in a linear layer, or in one of another shape.
    """
    name, layer = linear_classifier(net)
    try:
        found = linear_classifier(other)[1]
    except InputError:
        found = None
    if found is None or found.weight.shape != layer.weight.shape:
        has = "none" if found is None else f"one of {found.out_features}"
        raise InputError(
            f"{described} should hold a classifier of {layer.out_features} classes and holds {has}: name the "
            "checkpoint of a linear evaluation, or leave it out"
        )
    return {f"{name}.{key}": value for key, value in found.state_dict().items()}


def accuracy_line(scores: Scores) -> str:
    """As the linear evaluations of these papers print it."""
    return f" * Acc@1 {scores.top1:.3f} Acc@5 {scores.top5:.3f}"


def evaluate_student(session: Session, test: Batches, held: Batches | None = None, *, due: Due) -> Probe:
    """For `Run.probes`: `top1`, `top5`, `loss` of the objective's `student` where they are due, and their line.

    Args:
        session: of the command.
        test: what is evaluated, pictures or features.
        held: held out of the training set (`--val-split`); adds `val_top1`.
        due: after which epochs.
    """

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if not due(clock):
            return {}
        student = objective.get_submodule("student")
        scores = classify(student, test, session.accelerator)
        session.say(accuracy_line(scores))
        values = {"top1": scores.top1, "top5": scores.top5, "loss": scores.loss}
        if held is not None:
            values["val_top1"] = classify(student, held, session.accelerator).top1
        return values

    return probe


def reestimated_figures(session: Session, net: nn.Module, batches: Iterable[Batch], test: Batches) -> dict[str, float]:
    """`top1_bn`, `top5_bn`, `loss_bn` of a net with batch-norm statistics re-estimated, and their line.

    The classifier stays; the net is as it was afterwards.

    Args:
        session: of the command.
        net: the classifier, at its bits or width.
        batches: see `lowbit.evaluate.batchnorm.reestimated_batchnorm`.
        test: pictures.

    Raises:
        Stopped: a stop signal came.
    """
    with reestimated_batchnorm(net, batches, session.accelerator):
        scores = classify(net, test, session.accelerator)
    session.say(f"{accuracy_line(scores)} with batch norm re-estimated")
    return {"top1_bn": scores.top1, "top5_bn": scores.top5, "loss_bn": scores.loss}
