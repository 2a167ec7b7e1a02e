"""Build any net by its timm name, the papers' own included."""

import logging
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import is_model_in_modules
from torch import nn

import lowbit.models.cifar_mobilenet
import lowbit.models.cifar_resnet
import lowbit.models.cifar_resnet_pad
import lowbit.models.cifar_resnet_wide
import lowbit.models.cifar_vgg
import lowbit.models.reactnet
import lowbit.models.resnet_w4
import lowbit.models.torchvision_nets
import lowbit.models.xnor_resnet  # noqa: F401  (they register their nets)
from lowbit.errors import InputError

SLACK = 1 << 24  # numbers of a net that a file need not hold
LONGEST = 60  # characters of a name in a message


def check_arch(arch: str) -> str:
    """The name if timm knows it, and the tag behind its point, without asking the network.

    Raises:
        InputError: unknown name or tag, with the nearest known ones.
    """
    if not timm.is_model(arch):
        near = get_close_matches(arch[:LONGEST], timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
        raise InputError(f"unknown net {arch[:LONGEST]!r}: not a timm model; {hint}")
    try:
        timm.get_pretrained_cfg(arch)
    except RuntimeError as error:
        name, _, tag = arch.partition(".")
        known = ", ".join(full.partition(".")[2] for full in timm.list_pretrained(f"{name}.*")[:5])
        raise InputError(f"unknown tag {tag[:LONGEST]!r} of {name}: give {name} alone, or with {known}") from error
    return arch


def create_model(arch: str, zero_init_last: bool = True, **arguments: Any) -> nn.Module:
    """`timm.create_model` with the papers' nets registered.

    Args:
        arch: timm name.
        zero_init_last: whether the weights of the last batch norm of each block of timm's ResNets are drawn as 0, which
            is timm's way, or 1, torchvision's; other nets have one way.
        arguments: of `timm.create_model` (`num_classes`, `in_chans`, `pretrained`, ...).

    Raises:
        InputError: unknown name, or arguments that the net refuses.
    """
    check_arch(arch)
    if not zero_init_last and is_model_in_modules(arch, "resnet"):
        arguments["zero_init_last"] = False
    try:
        return timm.create_model(arch, **arguments)
    except (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and arguments.get("pretrained"):
            raise
        text = " ".join(str(error).split())[:150]
        raise InputError(f"{arch} cannot be built with {arguments}: {text}") from error


def check_size(build: Callable[[], nn.Module], most: int) -> None:
    """Refuse a net that is too large for the file that names it, before it takes memory.

    Args:
        build: makes the net; called with tensors that have no values.
        most: numbers that the net may have, weights and buffers, beside SLACK.

    Raises:
        InputError: it has more.
    """
    before = logging.root.manager.disable
    logging.disable()  # it is built again, and says then what it has to say
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            found = sum(value.numel() for value in build().state_dict().values())
    except (NotImplementedError, RuntimeError):  # a net that needs values while it is made
        return
    finally:
        logging.disable(before)
    if found > most + SLACK:
        raise InputError(f"the net that it names has {found:,} numbers, more than the file can hold; name another file")


def create_pretrained(arch: str, classes: int, flag: str = "--pretrained") -> nn.Module:
    """A net with timm's weights, which `flag` asks for; the classifier is drawn where they are of other classes.

    Raises:
        InputError: unknown name, or the weights cannot be fetched.
    """
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # each retry is a line; our error is to be one
    try:
        return create_model(arch, num_classes=classes, pretrained=True)
    except (OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{flag}: timm's weights of {arch} cannot be had ({reason}); leave it out") from error


def picture_settings(model: nn.Module) -> dict[str, Any]:
    """How timm shows pictures to a net: its data configuration, as a checkpoint can hold it."""
    config = resolve_model_data_config(model)
    return {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """What the keys of a timm net's last layer begin with, such as `fc.`; of nets with two heads, both."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((found,) if isinstance(found, str) else found))
