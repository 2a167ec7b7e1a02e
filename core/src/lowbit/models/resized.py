"""Nets with narrower layers than their architecture has: sizes by layer, as files of such nets state them."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.models.surgery import conv_like, replace_

SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")
Sizes = Mapping[str, Mapping[str, int]]  # {layer: {attribute: number}}


def sizes_of(layer: nn.Module) -> dict[str, int]:
    """The sizes that a layer has."""
    return {size: getattr(layer, size) for size in SIZES if hasattr(layer, size)}


def resize_(model: nn.Module, sizes: Sizes) -> nn.Module:
    """Give layers other sizes, their tensors not yet set; returns the net.

    Raises:
        AttributeError, TypeError, ValueError: no such layer, one of no size, or numbers that are not below its own.
    """
    return replace_(model, {name: _resized(model.get_submodule(name), said) for name, said in sizes.items()})


def _resized(layer: Any, sizes: Mapping[str, int]) -> nn.Module:
    """A layer of the same kind and other sizes, its tensors not yet set."""
    if set(sizes) - set(SIZES) or any(not 0 < size <= getattr(layer, name) for name, size in sizes.items()):
        raise ValueError(f"sizes {dict(sizes)} are not those of a slimmed {type(layer).__name__}")
    if isinstance(layer, nn.Conv2d):
        return conv_like(layer, **sizes).to_empty(device="cpu")
    if isinstance(layer, nn.Linear):
        return nn.Linear(sizes["in_features"], sizes["out_features"], layer.bias is not None)
    if not isinstance(layer, _BatchNorm):
        raise ValueError(f"{type(layer).__name__} has no other size")
    norm = deepcopy(layer)
    norm.num_features = sizes["num_features"]
    for name, old in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)):
        if old.dim():
            new: Tensor = torch.empty(norm.num_features)
            setattr(norm, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    return norm
