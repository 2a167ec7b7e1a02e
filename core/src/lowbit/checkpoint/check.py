"""What has to be right about the tensors of a checkpoint: finite, and of the kind of numbers that the net has."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError

FLOATS = ("weight", "bias", "running_mean", "running_var")  # last parts of names


def tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested dicts, lists and tuples, with its place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from tensors(inner, f"{name}[{number}]")


def first_bad(state: Mapping[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinity, among weights and optimizer state where they are told apart."""
    checked = {key: state[key] for key in ("state_dict", "optimizer") if key in state} or state
    floats = ((name, t) for name, t in tensors(checked) if t.is_floating_point())
    wide = ((name, t if t.element_size() > 1 else t.float()) for name, t in floats)  # of 8 bits there are no sums
    suspects = ((name, t) for name, t in wide if not bool(torch.isfinite(t.sum())))  # a sum makes no second tensor
    return next((name for name, t in suspects if not bool(torch.isfinite(t).all())), None)


def check_kinds(given: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Refuse integers, complex numbers or half precision where a net has floats, and the reverse; loading converts.

    Args:
        given: what is to be loaded.
        own: the net's tensors; names that only one of them has are not looked at.

    Raises:
        InputError: the first that differs.
    """
    for name, tensor in own.items():
        other = given.get(name)
        if isinstance(other, Tensor) and kind(other) != kind(tensor):
            raise InputError(
                f"{name} holds {kind(other)} ({str(other.dtype).removeprefix('torch.')}) where the net has "
                f"{kind(tensor)}: name a checkpoint of this net"
            )


def check_floats(state: Mapping[str, Tensor]) -> None:
    """Refuse weights that are no floats of 32 or 64 bits in what a method writes, also those that nobody reads.

    Raises:
        InputError: the first such one.
    """
    for name, tensor in state.items():
        if name.rpartition(".")[2] in FLOATS and kind(tensor) != "floats":
            raise InputError(
                f"{name} holds {kind(tensor)} ({str(tensor.dtype).removeprefix('torch.')}) where the net has floats: "
                "name a checkpoint of this net"
            )


def behind(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose keys begin with a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def unwrapped_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """The `state_dict` of a checkpoint, or what is one itself, without what DDP puts before keys; None: other things.

    Raises:
        InputError: see `without_prefix`.
    """
    found = checkpoint.get("state_dict", checkpoint)
    if not isinstance(found, Mapping) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        return None
    return without_prefix(found, "module.")


def without_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Keys without what a wrapper puts before them.

    Raises:
        InputError: a key with it, and the same one without.
    """
    plain = {str(key).removeprefix(prefix): value for key, value in state.items()}
    twice = next((key for key in plain if key in state and prefix + key in state), None)
    if twice is not None:
        raise InputError(f"it holds both {twice} and {prefix}{twice}: save the state_dict of one net alone")
    return plain


def load_state_(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Give a net exactly these tensors of a checkpoint; returns it.

    Raises:
        InputError: tensors that are missing, left over, or of another shape or kind.
    """
    check_kinds(state, model.state_dict())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the checkpoint's tensors do not fit the net that it names: {reason}") from error
    return model


def kind(tensor: Tensor) -> str:
    """What a tensor's numbers are: floats (of 32 or 64 bits, or fewer), complex numbers, integers (also booleans)."""
    if tensor.is_complex():
        return "complex numbers"
    if tensor.is_floating_point() and tensor.element_size() < 4:
        return "half-precision floats"
    return "floats" if tensor.is_floating_point() else "integers"
