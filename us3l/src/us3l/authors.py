"""The layout of the authors' checkpoints, read by content: `module.encoder_q.<layer>`, its projector at `fc`.

ResNets have timm's keys; MobileNet-V2 has `features.<block>`, which is renamed. Their `calibrate` leaves the first
layer of the projector as `fc`, which is left out; their `linear` saves the classifier itself. Files name their net in
`arch` (`us_cifar_resnet18`), else its tensors' shapes show it; no file says the width of its statistics, which the
channels that have any show.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from lowbit.checkpoint.check import behind, load_state_, unwrapped_state
from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.heads import end_like_
from lowbit.models.layouts import resnet_of
from us3l.names import Net, net_of
from us3l.network import slimmable_

ENCODER = "encoder_q."
REPEATS = (1, 2, 3, 4, 3, 3, 1)  # blocks of MobileNet-V2's stages
BLOCKS = [f"blocks.{stage}.{number}" for stage, repeats in enumerate(REPEATS) for number in range(repeats)]
ENDS = {"0.0": "conv_stem", "0.1": "bn1", "18.0": "conv_head", "18.1": "bn2"}  # of `features`
INSIDE = {"0": "conv_pw", "1": "bn1", "3": "conv_dw", "4": "bn2", "6": "conv_pwl", "7": "bn3"}  # of a block's `body`
S_NETS = (1.0, 0.75, 0.5, 0.25)  # widths of a switchable net
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
FIRST = {"0": "conv_dw", "1": "bn1", "3": "conv_pw", "4": "bn2"}  # the first does not expand


class Theirs(NamedTuple):
    """An encoder of theirs: `state` with timm's keys; `net` None: nothing says which; `certain`: it is theirs."""

    state: dict[str, Tensor]
    net: Net | None
    certain: bool


def parse(checkpoint: Mapping[str, Any]) -> Theirs | None:
    """The online encoder of a checkpoint of theirs, or the net of their `linear`; None if it is none."""
    state, arch = unwrapped_state(checkpoint), checkpoint.get("arch")
    said = net_of(arch) if isinstance(arch, str) else None
    slimmable = said is not None and said.kind != "plain"
    if state is None:
        return None
    found = behind(state, ENCODER)
    if found and "fc.weight" in found:  # of `calibrate`
        found = {key: value for key, value in found.items() if not key.startswith("fc.")}
    found = found or (state if slimmable else {})
    if "features.0.0.weight" in found:
        found = dict(zip(map(timm_name, found), found.values(), strict=True))
    elif "conv1.weight" not in found:
        return None
    if not slimmable:
        shown = resnet_of(found)
        said = None if shown is None else Net(shown, "universal")
    return Theirs(found, said, slimmable)


def timm_name(key: str) -> str:
    """`features.2.body.3.weight` -> `blocks.1.0.conv_dw.weight`, of modules, too; `fc.0.bias` -> `classifier.0.bias`.

    Raises:
        InputError: no key, and no layer, of their MobileNet-V2.
    """
    parts = key.split(".")
    try:
        if parts[0] == "fc":
            return ".".join(["classifier", *parts[1:]])
        if parts[2] != "body":
            return ".".join([ENDS[".".join(parts[1:3])], *parts[3:]])
        number = int(parts[1])
        names = FIRST if number == 1 else INSIDE
        return ".".join([BLOCKS[number - 1], names[parts[3]], *parts[4:]])
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"{key} is no tensor or layer of the authors' MobileNet-V2: name another") from error


def is_statistic(key: str) -> bool:
    """Whether a key is of batch norm's statistics, which most of their files lack."""
    return key.endswith(STATISTICS)


def build(theirs: Theirs) -> nn.Module:
    """Their net, slimmable, its projector or classifier in place; batch norm without statistics has 0 and 1.

    Raises:
        InputError: none of their nets, or tensors that do not fit.
    """
    if theirs.net is None:
        raise InputError("the checkpoint does not say which net it holds, and its tensors do not show it")
    name, state = theirs.net.name, theirs.state
    size = (3, 32, 32) if name.startswith("cifar") else (3, 224, 224)
    try:
        net = slimmable_(end_like_(create_model(name, num_classes=1), state), theirs.net, size, S_NETS)
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint's tensors are not those of a {name} of US3L's authors: {reason}") from error
    own = net.state_dict()
    return load_state_(net, {key: own[key] for key in own if is_statistic(key)} | state)
