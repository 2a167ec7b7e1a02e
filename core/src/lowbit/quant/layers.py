"""The layer protocol: how cost and export read a quantized layer without asking which method it is from."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit.models.surgery import replace_


class Codes(NamedTuple):
    """A quantized tensor: value = (codes - zero_point) * scale, element by element in the dtype of `scale`.

    Attributes:
        codes: int32, the tensor's shape.
        scale: 0-dimensional or broadcastable to it (per channel).
        zero_point: int32, like `scale`; 0 for symmetric quantizers.
        bits: stored bits a code, the sign included (BSQ: N + 1); 0 for a tensor that is all zero and stores nothing.
        signed: whether codes are two's complement (else they start at 0).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    signed: bool

    def values(self) -> Tensor:
        """The float tensor that the codes stand for; a layer's own weight is `torch.equal` to it."""
        return (self.codes - self.zero_point).to(self.scale.dtype) * self.scale


@runtime_checkable
class QuantizedLayer(Protocol):
    """A layer whose weights are integer codes; every method's layers are one.

    Attributes:
        act_bits: bits of the layer's *input*; None: float.
        act_range: largest magnitude of that input; None: float, or taken from each batch.
            Both are set by `lowbit.quant.trace.set_inputs_`.
    """

    act_bits: int | None
    act_range: float | None

    def weight_codes(self) -> Codes:
        """The weight as codes."""
        ...

    def bias_codes(self) -> Codes | None:
        """The bias as codes; None where there is none or it stays float."""
        ...

    def to_plain(self) -> nn.Module:
        """The ordinary layer with the same weights as floats."""
        ...


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """(name, layer) of every quantized layer, in the order of the modules."""
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            yield name, module


@torch.no_grad()
def to_plain_(model: nn.Module) -> nn.Module:
    """Replace every quantized layer by the ordinary one with the same weights; returns the model."""
    return replace_(model, {name: layer.to_plain() for name, layer in quantized_layers(model)})
