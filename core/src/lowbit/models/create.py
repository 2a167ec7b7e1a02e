"""Build any net by its timm name, the papers' own included."""

from difflib import get_close_matches
from typing import Any

import timm
from torch import nn

import lowbit.models.cifar_resnet
import lowbit.models.cifar_resnet_wide  # noqa: F401  (both register their nets)
from lowbit.errors import InputError


def check_arch(arch: str) -> str:
    """The name if timm knows it without asking the network.

    Raises:
        InputError: unknown name, with the nearest known ones.
    """
    if not timm.is_model(arch):
        near = get_close_matches(arch, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_models() names them"
        raise InputError(f"unknown net {arch!r}: not a timm model; {hint}")
    return arch


def create_model(arch: str, **arguments: Any) -> nn.Module:
    """`timm.create_model` with the papers' nets registered.

    Args:
        arch: timm name.
        arguments: of `timm.create_model` (`num_classes`, `in_chans`, `pretrained`, ...).

    Raises:
        InputError: unknown name, or arguments that the net refuses.
    """
    check_arch(arch)
    try:
        return timm.create_model(arch, **arguments)
    except (TypeError, ValueError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{arch} cannot be built with {arguments}: {text}") from error


def classifiers(model: nn.Module) -> tuple[str, ...]:
    """What the keys of a timm net's last layer begin with, such as `fc.`; of nets with two heads, both."""
    found = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ((found,) if isinstance(found, str) else found))
