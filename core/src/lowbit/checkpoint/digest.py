"""A checksum of tensors and of what is said about them."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def digest(state: Mapping[str, Any]) -> str:
    """A hash of names, shapes, dtypes and bytes of a state dict; 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for name, value in state.items():
        if isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{name} {value!r}".encode())
    return found.hexdigest()
