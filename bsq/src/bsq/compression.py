"""What a net in BSQ's bits weighs, and the compressions that follow."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from bsq.bit_layer import BitLayer
from bsq.network import bit_layers
from lowbit.quant.activations import QuantActivation


class Size(NamedTuple):
    """What a net weighs, and the compressions that `result.json` reports.

    Attributes:
        weights: weights and biases of the bit layers (the authors' TP).
        bits: their magnitude bits, dead tensors 0 (the authors' TB).
        compression: 32 weights / bits, the authors' (bit layers, sign not counted); inf when every layer is dead.
        bits_signed, compression_signed: the same with one more bit per weight for the sign.
        float_values: other floats kept (shortcuts, batch norm with its statistics), no scales.
        scales: scales, PACT's alphas and activation ranges.
        compression_all: the whole float net against the whole signed net with its scales, all floats at 32 bits.
    """

    weights: int
    bits: int
    compression: float
    bits_signed: int
    compression_signed: float
    float_values: int
    scales: int
    compression_all: float


def size(model: nn.Module) -> Size:
    """Count a converted net."""
    layers = bit_layers(model)
    tensors = [(layer.numel(keys), layer.bits(keys)) for layer in layers.values() for keys in layer.tensors]
    weights = sum(numel for numel, _ in tensors)
    bits = sum(numel * b for numel, b in tensors)
    signed = sum(numel * (b + 1) for numel, b in tensors if b)
    others = [m for m in model.modules() if not isinstance(m, BitLayer | QuantActivation)]
    extra = [m for m in model.modules() if isinstance(m, QuantActivation)]
    floats, alphas = _own_floats(others), _own_floats(extra)
    scales = len(tensors) + alphas
    whole = 32 * (weights + floats) / (signed + 32 * (floats + scales))
    return Size(weights, bits, _ratio(weights, bits), signed, _ratio(weights, signed), floats, scales, whole)


def _ratio(weights: int, bits: int) -> float:
    return 32 * weights / bits if bits else float("inf")


def _own_floats(modules: Sequence[nn.Module]) -> int:
    own = [t for m in modules for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))]
    return sum(t.numel() for t in own if t.is_floating_point())
