"""What a net costs, layer by layer: parameters, stored bits, multiply-accumulates, bit operations, bytes.

One function for every method, through the layer protocol alone. MACs are those of convolutions and linear layers for
one picture; products inside attention are not counted. BOPs = MACs x stored bits of the weight x bits of the input, a
float having 32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lowbit.quant.activations import QuantActivation
from lowbit.quant.layers import Codes, QuantizedLayer, quantized_layers
from lowbit.quant.trace import Traced, set_inputs_, trace

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """One module that owns tensors.

    Attributes:
        name: module name ("" for tensors of the net itself). kind: class name.
        parameters: weights and biases as the plain layer counts them (no planes, scales or statistics).
        bits: stored bits of one weight, the sign included; 32: float.
        stored_bits: all that is kept for inference: codes, scales, float biases, batch norm with its statistics.
        macs: multiply-accumulates for one picture.
        act_bits: bits of the input; None: float.
        bops: bit operations.
    """

    name: str
    kind: str
    parameters: int
    bits: int
    stored_bits: int
    macs: int
    act_bits: int | None

    @property
    def bops(self) -> int:
        """MACs x weight bits x input bits."""
        return self.macs * self.bits * (FLOAT_BITS if self.act_bits is None else self.act_bits)

    @property
    def bytes(self) -> int:
        """Stored bytes, rounded up."""
        return -(-self.stored_bits // 8)


@dataclass(frozen=True)
class Cost:
    """All layers, and the totals over them."""

    layers: tuple[LayerCost, ...]

    @property
    def parameters(self) -> int:
        """Weights and biases."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def stored_bits(self) -> int:
        """Bits kept for inference."""
        return sum(layer.stored_bits for layer in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes kept for inference, rounded up."""
        return -(-self.stored_bits // 8)

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one picture."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one picture."""
        return sum(layer.bops for layer in self.layers)


@torch.no_grad()
def cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count a net, float or quantized by any method.

    Args:
        model: evaluated once on a blank picture; its layers' `act_bits` and `act_range` are set on the way.
        input_size: (C, H, W) of a picture.
    """
    traced = trace(model, input_size)
    set_inputs_(model, traced)
    quantized = dict(quantized_layers(model))
    rows = []
    for name, module in model.named_modules():
        if name in quantized:
            rows.append(_quantized(name, quantized[name], traced.get(name)))
        elif _own(module):
            rows.append(_plain(name, module, traced.get(name)))
    return Cost(tuple(rows))


def _own(module: nn.Module) -> list[Tensor]:
    """The module's own float tensors."""
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return [t for t in tensors if t.is_floating_point()]


def _macs(weight: Tensor, seen: Traced | None) -> int:
    return 0 if seen is None else seen.outputs * weight[0].numel()


def _plain(name: str, module: nn.Module, seen: Traced | None) -> LayerCost:
    learned = () if isinstance(module, QuantActivation) else module.parameters(recurse=False)  # PACT's alpha: a scale
    parameters = sum(p.numel() for p in learned)
    stored = FLOAT_BITS * sum(t.numel() for t in _own(module))
    macs = _macs(module.weight, seen) if isinstance(module, nn.Conv2d | nn.Linear) else 0
    bits = None if seen is None or seen.quantizer is None else seen.quantizer.bits
    return LayerCost(name, type(module).__name__, parameters, FLOAT_BITS, stored, macs, bits)


def _quantized(name: str, layer: QuantizedLayer, seen: Traced | None) -> LayerCost:
    weight, bias = layer.weight_codes(), layer.bias_codes()
    parameters = sum(p.numel() for p in layer.to_plain().parameters())
    stored = _code_bits(weight) + (0 if bias is None else _code_bits(bias))
    if bias is None:
        stored += FLOAT_BITS * (parameters - weight.codes.numel())
    macs = _macs(weight.codes, seen)
    return LayerCost(name, type(layer).__name__, parameters, weight.bits, stored, macs, layer.act_bits)


def _code_bits(tensor: Codes) -> int:
    zero_points = tensor.zero_point.numel() if bool(tensor.zero_point.any()) else 0
    return tensor.codes.numel() * tensor.bits + FLOAT_BITS * (tensor.scale.numel() + zero_points)
