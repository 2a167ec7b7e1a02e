"""Tensors of nothing but 0 and 1, such as binary planes, at one bit a value in checkpoint files.

The key stays and holds the bits as bytes, first value lowest; the entry `packed` says {key: [dtype, *shape]}. Readers
get the floats back, to the bit. Tensors of other values, of few, or of one alone (an untrained batch norm's) stay as
they are.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

ENTRY = "packed"
LEAST = 1024  # values
DTYPES = {"float32": torch.float32, "float64": torch.float64}


def pack(state: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's content as its file holds it; the tensors of `state` itself are not changed."""
    weights = state.get("state_dict")
    if not isinstance(weights, Mapping):
        return dict(state)
    chosen = {key: value for key, value in weights.items() if isinstance(value, Tensor) and _is_binary(value)}
    if not chosen:
        return dict(state)
    packed = {key: [str(value.dtype).removeprefix("torch."), *value.shape] for key, value in chosen.items()}
    return {**state, "state_dict": {**weights, **{key: _bits(value) for key, value in chosen.items()}}, ENTRY: packed}


def unpack(state: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `pack`; content without such tensors is returned as it is.

    Raises:
        ValueError: the entry does not describe the bytes that are there.
    """
    packed, weights = state.get(ENTRY), state.get("state_dict")
    if packed is None:
        return state
    if not isinstance(packed, Mapping) or not isinstance(weights, Mapping):
        raise ValueError(f"its entry {ENTRY} describes no state_dict")
    floats = {key: _floats(key, weights.get(key), said) for key, said in packed.items()}
    return {**{key: value for key, value in state.items() if key != ENTRY}, "state_dict": {**weights, **floats}}


def stored_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What these tensors take in a checkpoint file."""
    return sum(-(-t.numel() // 8) if _is_binary(t) else t.numel() * t.element_size() for t in tensors.values())


def _is_binary(tensor: Tensor) -> bool:
    if tensor.numel() < LEAST or tensor.dtype not in DTYPES.values():
        return False
    parts = (tensor[:1], tensor)  # most others show it in their first channel
    binary = all(bool((((x == 0) & ~torch.signbit(x)) | (x == 1)).all()) for x in parts)
    return binary and bool(tensor.any()) and not bool(tensor.all())


def _bits(tensor: Tensor) -> Tensor:
    values = tensor.detach().cpu().reshape(-1).to(torch.uint8).numpy()
    return torch.from_numpy(np.packbits(values, bitorder="little"))


def _floats(key: Any, held: Any, said: Any) -> Tensor:
    right = isinstance(said, list) and said and said[0] in DTYPES
    shape = said[1:] if right else []
    if not shape or not all(type(length) is int and length > 0 for length in shape):
        raise ValueError(f"its entry {ENTRY} says {said!r:.80} of {key!s:.80}")
    count = math.prod(shape)
    right = isinstance(held, Tensor) and held.dtype == torch.uint8 and held.shape == (-(-count // 8),)
    if not right:
        raise ValueError(f"{key!s:.80} does not hold the {count:,} bits that its entry {ENTRY} says")
    values = np.unpackbits(held.contiguous().numpy(), count=count, bitorder="little")
    return torch.from_numpy(values).to(DTYPES[said[0]]).reshape(shape)
