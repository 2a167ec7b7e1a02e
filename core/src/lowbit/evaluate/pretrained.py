"""What an evaluation starts from: the tensors of a pretrained file in a classifier, and their digest in checkpoints.

Each epoch of a probe should leave them as they are; `check_unchanged` looks at them after the first one.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lowbit.checkpoint.digest import digest
from lowbit.errors import InputError
from lowbit.models.heads import linear_classifier
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.session import Session


def load_pretrained_(
    net: nn.Module, given: Mapping[str, Tensor] | None, resumed: Mapping[str, Any] | None, option: str
) -> str | None:
    """Give a net its pretrained tensors unless the run goes on from a checkpoint; returns their digest.

    Args:
        net: in place.
        given: some of its tensors, by its own keys; None: no file is named, which a resumed run may leave out.
        resumed: the checkpoint that the run goes on from.
        option: the name under which the options of a run hold the digest.
    """
    if given is None:
        return None if resumed is None else option_of(resumed, option)
    if resumed is None:
        net.load_state_dict({**net.state_dict(), **given})
    return digest(given)


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


def check_unchanged(session: Session, content: str | None) -> Probe:
    """For `Run.probes`: after the first epoch every tensor but the classifier's is still the file's, bit for bit.

    Args:
        session: of the command.
        content: of `load_pretrained_`.

    Raises:
        RuntimeError: one is not.
    """

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if clock.epoch == 0 and content is not None:
            net = objective.get_submodule("student.net")
            head = f"{linear_classifier(net)[0]}."
            if digest({key: value for key, value in net.state_dict().items() if not key.startswith(head)}) != content:
                raise RuntimeError("the frozen net is no longer that of its file")
            session.say("=> sanity check passed.")
        return {}

    return probe
