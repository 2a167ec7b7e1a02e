"""Which layers of a student are quantized, with what: the policy of the command line, by name.

Without `include` all convolutions and linear layers but the first and the classifier (`layer_points`); `first_last`
says whether those stay float, as in the authors' programs, have 8 bits, or the same as all others.
"""

from collections.abc import Mapping

from torch import nn

from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points, quantize_learned_
from sqakd.options import TrainOptions

Quantizers = Mapping[str, tuple[LearnedConfig, LearnedConfig]]  # of weight and input, by the layer's name


def quantizers_of(own: TrainOptions, model: nn.Module) -> Quantizers:
    """By layer; none of a float net.

    Raises:
        InputError: a pattern that fits no layer, or bits that the quantizer does not have.
    """
    if not own.quantizer:
        return {}
    inner = layer_points(model, own.include or None, own.exclude)
    chosen = {name: _pair(own, own.wbits, own.abits) for name in inner}
    if own.include or own.first_last == "float":
        return chosen
    ends = _pair(own, 8, 8) if own.first_last == "8" else _pair(own, own.wbits, own.abits)
    return {name: chosen.get(name, ends) for name in layer_points(model, ["*"], own.exclude)}


def _pair(own: TrainOptions, wbits: int, abits: int) -> tuple[LearnedConfig, LearnedConfig]:
    both = (wbits, own.delta_w), (abits, own.delta_a)
    weight, given = (LearnedConfig(own.quantizer, bits, delta, own.released) for bits, delta in both)
    return weight, given


def quantize_(model: nn.Module, quantizers: Quantizers) -> nn.Module:
    """In place; `lowbit.quant.initialize` has still to set them."""
    return quantize_learned_(model, list(quantizers), quantizers.__getitem__)
