"""What a net costs, layer by layer: parameters, stored bits, multiply-accumulates, bit operations, bytes.

One function for every method, through the layer protocol alone. MACs are those of convolutions and linear layers for
one picture; products inside attention are not counted. BOPs = MACs x stored bits of the weight x bits of the input, a
float having 32. Of binary nets OPs = real MACs + binary MACs / 64 are reported (Liu et al., ECCV 2018), binary being
those of one bit by one bit.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.quant.layers import ActivationQuantizer, Codes, quantized_layers, quantizers
from lowbit.quant.trace import Traced, trace

FLOAT_BITS = 32
BINARY_PER_OP = 64


@dataclass(frozen=True)
class LayerCost:
    """One module that owns tensors.

    Attributes:
        name: module name ("" for tensors of the net itself). kind: class name.
        parameters: weights and biases as the plain layer counts them (no planes, scales or statistics; none of a
            quantizer's own); one that modules share counts at the first of them.
        bits: stored bits of one weight, the sign included; 32: float.
        stored_bits: all that is kept for inference: codes, scales, float biases, batch norm with its statistics.
        macs: multiply-accumulates for one picture.
        input_bits: bits of the input; None: float.
        bops: bit operations.
    """

    name: str
    kind: str
    parameters: int
    bits: int
    stored_bits: int
    macs: int
    input_bits: int | None

    @property
    def bops(self) -> int:
        """MACs x weight bits x input bits."""
        return self.macs * self.bits * (FLOAT_BITS if self.input_bits is None else self.input_bits)

    @property
    def binary_macs(self) -> int:
        """The MACs where weight and input have one bit each, else 0."""
        return self.macs if self.bits == self.input_bits == 1 else 0

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
    def binary_macs(self) -> int:
        """Those of one bit by one bit."""
        return sum(layer.binary_macs for layer in self.layers)

    @property
    def real_macs(self) -> int:
        """The others."""
        return self.macs - self.binary_macs

    @property
    def ops(self) -> int:
        """Operations as papers on binary nets count them, rounded up: 64 binary MACs take one instruction."""
        return self.real_macs - (-self.binary_macs // BINARY_PER_OP)

    @property
    def binary_parameters(self) -> int:
        """Of the layers whose weight has one bit, float biases included."""
        return sum(layer.parameters for layer in self.layers if layer.bits == 1)

    @property
    def bops(self) -> int:
        """Bit operations for one picture."""
        return sum(layer.bops for layer in self.layers)


@torch.no_grad()
def cost(model: nn.Module, input_size: tuple[int, int, int]) -> Cost:
    """Count a net, float or quantized by any method.

    Args:
        model: evaluated once on a blank picture.
        input_size: (C, H, W) of a picture.
    """
    traced, layers, acts = trace(model, input_size), dict(quantized_layers(model)), quantizers(model)
    rows: list[LayerCost] = []
    once = _Once()
    owner = ""  # of the modules that belong to the last row: a layer's quantizers, an activation's observer
    for name, module in model.named_modules():
        if owner and name.startswith(owner):
            continue
        if name in layers:
            rows.append(_quantized(name, layers[name], traced.get(name), once))
        elif name in acts:
            stored = FLOAT_BITS * sum(t.numel() for t in _floats(module))
            rows.append(LayerCost(name, type(module).__name__, 0, FLOAT_BITS, stored, 0, None))
        elif _floats(module, recurse=False):
            rows.append(_plain(name, module, traced.get(name), once))
            continue
        else:
            continue
        owner = f"{name}." if name else ""
    return Cost(tuple(rows))


def _floats(module: Any, recurse: bool = True) -> list[Tensor]:
    """The module's float tensors."""
    return [t for t in (*module.parameters(recurse), *module.buffers(recurse)) if t.is_floating_point()]


def _macs(layer: nn.Module, seen: Traced | None) -> int:
    return seen.outputs * layer.weight[0].numel() if seen and isinstance(layer, nn.Conv2d | nn.Linear) else 0


def _bits(seen: Traced | None) -> int | None:
    return None if seen is None or seen.input_grid is None else seen.input_grid.bits


class _Once:
    """Counts the numbers of a parameter that several modules share once, at the first of them."""

    def __init__(self) -> None:
        self.counted: dict[tuple[int, int | None], int] = {}

    def new(self, source: Tensor | None, n: int, bits: int | None = None) -> int:
        """How many of the first n numbers were not counted before (at these bits)."""
        if source is None:
            return n
        before = self.counted.get((id(source), bits), 0)
        self.counted[id(source), bits] = max(before, n)
        return max(0, n - before)


def _plain(name: str, module: nn.Module, seen: Traced | None, once: _Once) -> LayerCost:
    parameters = sum(once.new(p, p.numel()) for p in module.parameters(recurse=False))
    stored = FLOAT_BITS * sum(once.new(t, t.numel(), FLOAT_BITS) for t in _floats(module, recurse=False))
    return LayerCost(name, type(module).__name__, parameters, FLOAT_BITS, stored, _macs(module, seen), _bits(seen))


def _quantized(name: str, layer: Any, seen: Traced | None, once: _Once) -> LayerCost:
    plain, weight, sources = layer.to_plain(), layer.weight_codes(), layer._parameters
    coded = {key: codes for key, codes in (("weight", weight), ("bias", layer.bias_codes())) if codes is not None}
    own = sum(t.numel() for m in layer.modules() if isinstance(m, ActivationQuantizer) for t in _floats(m))
    floats = own + sum(t.numel() for t in plain.buffers() if t.is_floating_point())
    parameters = stored = 0
    for key, p in plain.named_parameters():
        source = sources.get(key)
        parameters += once.new(source, p.numel())
        if key not in coded:
            floats += once.new(source, p.numel(), FLOAT_BITS)
        elif once.new(source, p.numel(), coded[key].grid.bits):
            stored += _code_bits(coded[key])
    stored += FLOAT_BITS * floats
    bits = FLOAT_BITS if weight is None else weight.grid.bits
    return LayerCost(name, type(layer).__name__, parameters, bits, stored, _macs(plain, seen), _bits(seen))


def _code_bits(codes: Codes) -> int:
    grid = codes.grid
    zero_points = grid.zero_point.numel() if bool(grid.zero_point.any()) else 0
    return codes.codes.numel() * grid.bits + FLOAT_BITS * (grid.scale.numel() + zero_points)
