"""The layer protocol: how cost and export read a quantized layer, or a quantized activation, of any method."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit.models.surgery import replace_


class Grid(NamedTuple):
    """The values that the codes of a tensor stand for: value = (code - zero_point) * scale.

    Attributes:
        scale: 0-dimensional or broadcastable to the tensor (per channel); NaN for an input whose range is that of each
            batch.
        zero_point: floats like `scale`, or 0-dimensional; whole multiples of 1/2. 0 for symmetric quantizers; 1/2 for
            +-alpha (codes 0 and 1, scale 2 alpha); (L - 1) / 2 for L levels that lie evenly around 0.
        bits: stored bits a code, the sign included; 0 for a tensor that is all zero and stores nothing.
        signed: whether codes are two's complement (else they start at 0).
    """

    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool


class Codes(NamedTuple):
    """A quantized tensor: its codes (int32, the tensor's shape) and their grid."""

    codes: Tensor
    grid: Grid

    def values(self) -> Tensor:
        """The float tensor that the codes stand for, in the dtype of the scale."""
        scale, zero_point = self.grid.scale, self.grid.zero_point
        wide = torch.promote_types(zero_point.dtype, torch.float32)  # half precision cannot hold every code
        return (self.codes - zero_point.to(wide)).to(scale.dtype) * scale


@runtime_checkable
class QuantizedLayer(Protocol):
    """A layer that computes with other weights than the parameters it holds: codes, or a part of them.

    Every method's layers are one; a slimmed layer (with or without a weight) is one, too.
    """

    def weight_codes(self) -> Codes | None:
        """The weight as codes; None: it is float."""
        ...

    def bias_codes(self) -> Codes | None:
        """The bias as codes; None: there is none, or it is float."""
        ...

    def input_grid(self) -> Grid | None:
        """The grid of the input, where the layer quantizes it itself; None: it is taken as it comes."""
        ...

    def to_plain(self) -> nn.Module:
        """The ordinary layer that computes with the same weights as floats, those of the codes where there are any."""
        ...


@runtime_checkable
class ActivationQuantizer(Protocol):
    """A module whose output lies on a grid (most are an activation function, too)."""

    def grid(self) -> Grid | None:
        """The grid of the output; None: float. Reads tensors back, so it is never called in a step."""
        ...

    def has_range(self) -> bool:
        """Whether there is a range that calibration sets (none where it is that of each batch, or learned)."""
        ...

    def calibrated(self) -> bool:
        """Whether the range is set, if there is one."""
        ...

    def begin_calibration_(self) -> None:
        """Watch the next forwards."""
        ...

    def end_calibration_(self, keep: bool) -> None:
        """Compute as before, over the range of the batches that were seen if `keep`, else over the former one."""
        ...


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """(name, layer) of every quantized layer, in the order of the modules."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield name, module


def quantizers(model: nn.Module) -> dict[str, ActivationQuantizer]:
    """The activation quantizers by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ActivationQuantizer)}


@torch.no_grad()
def to_plain_(model: nn.Module) -> nn.Module:
    """Replace every quantized layer by the ordinary one with the same weights; returns the model.

    A parameter that layers share stays one where they compute with the same values of it.
    """
    layers: dict[str, Any] = dict(quantized_layers(model))
    inside = {id(module) for layer in layers.values() for module in layer.modules()}
    outside = [module for module in model.modules() if id(module) not in inside]
    kept = {id(p): p for module in outside for p in module.parameters(recurse=False)}
    new: dict[str, nn.Module] = {}
    for name, layer in layers.items():
        new[name] = plain = layer.to_plain()
        for key, own in plain.named_parameters():
            source = layer._parameters.get(key)
            first = own if source is None else kept.setdefault(id(source), own)
            if first is not own and first.shape == own.shape and torch.equal(first, own):
                setattr(plain, key, first)
    return replace_(model, new)
