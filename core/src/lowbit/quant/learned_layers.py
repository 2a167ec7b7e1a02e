"""Layers under learned quantizers: which ones, with which, and their parameters.

quantize_learned_(net, layer_points(net), lambda name: (LearnedConfig("lsq", 4), LearnedConfig("lsq", 4)))
initialize_(net, [first_batch])
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.create import classifiers
from lowbit.models.surgery import of_kind, replace_, select
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.dorefa import DorefaInput, DorefaWeight
from lowbit.quant.ewgs import EwgsInput, EwgsWeight
from lowbit.quant.learned import LearnedConfig, check_sign
from lowbit.quant.lsq import LsqInput, LsqWeight
from lowbit.quant.pact import PactInput

WEIGHTS: dict[str, type[nn.Module]] = {
    "ste": EwgsWeight,
    "ewgs": EwgsWeight,
    "pact": DorefaWeight,
    "lsq": LsqWeight,
    "dorefa": DorefaWeight,
}
INPUTS: dict[str, type[nn.Module]] = {
    "ste": EwgsInput,
    "ewgs": EwgsInput,
    "pact": PactInput,
    "lsq": LsqInput,
    "dorefa": DorefaInput,
}
LAYERS = (nn.Conv2d, nn.Linear)


def weight_quantizer(config: LearnedConfig) -> nn.Module | None:
    """The module that quantizes a weight; None at 0 bits, unless it has an output scale, too (`ewgs`)."""
    return WEIGHTS[config.quantizer](config) if config.bits or config.quantizer in ("ste", "ewgs") else None


def input_quantizer(config: LearnedConfig) -> nn.Module | None:
    """The module that quantizes a layer's input; None at 0 bits."""
    return INPUTS[config.quantizer](config) if config.bits else None


def layer_points(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the convolutions and linear layers to quantize.

    Args:
        model: any timm net, float.
        include: patterns of module names; None: all but the first (timm's `first_conv`, which may name several, and
            what else stands in its block) and the classifier.
        exclude: patterns of names that stay float.

    Raises:
        InputError: a pattern matches no layer.
    """
    if include is not None:
        return select(model, _is_layer, include, exclude)
    first = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv") or ()
    ends = (*(f"{name}." for name in ((first,) if isinstance(first, str) else first)), *classifiers(model))
    return [name for name in select(model, _is_layer, exclude=exclude) if not f"{name}.".startswith(ends)]


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, LAYERS)


def quantize_learned_(
    model: nn.Module, points: Sequence[str], config: Callable[[str], tuple[LearnedConfig, LearnedConfig]]
) -> nn.Module:
    """Put quantizers of weight and input into the named layers, in place; `initialize_` has still to set them.

    Parameters stay the same objects and keep their keys; quantizers add `<layer>.weight_quantizer.*` and
    `<layer>.input_quantizer.*`.

    Args:
        model: float.
        points: names, usually of `layer_points`.
        config: of weight and input, by the layer's name; 0 bits: float.

    Returns:
        The model (the new layer, if the model was a single layer).

    Raises:
        InputError: a layer whose weight cannot be followed, or a configuration that does not exist.
    """
    new: dict[str, nn.Module] = {}
    for name in points:
        layer = model.get_submodule(name)
        weight, given = config(name)
        try:
            quantizers = weight_quantizer(weight), input_quantizer(given)
            if isinstance(layer, nn.Conv2d):
                new[name] = QuantConv2d(layer, *quantizers)  # type: ignore[arg-type]
            elif isinstance(layer, nn.Linear):
                new[name] = QuantLinear(layer, *quantizers)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
        like: Tensor = layer.weight  # type: ignore[assignment]
        for quantizer in filter(None, quantizers):
            quantizer.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)
    return replace_(model, new)


def learned_layers(model: nn.Module) -> dict[str, QuantConv2d | QuantLinear]:
    """The layers that `quantize_learned_` made, by name, in the order of the modules."""
    kinds = (*WEIGHTS.values(), *INPUTS.values())
    found: dict[str, QuantConv2d | QuantLinear] = {**of_kind(model, QuantConv2d), **of_kind(model, QuantLinear)}
    ours = {
        n: m for n, m in found.items() if isinstance(m.weight_quantizer, kinds) or isinstance(m.input_quantizer, kinds)
    }
    return {name: ours[name] for name, _ in model.named_modules() if name in ours}


def quantizer_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The trained parameters of the quantizers by name, which usually have an optimizer or a group of their own."""
    return {
        f"{name}.{key}": parameter
        for name, layer in learned_layers(model).items()
        for key, parameter in layer.named_parameters()
        if key.partition(".")[0] in ("weight_quantizer", "input_quantizer")
    }


@contextmanager
def at_bits(model: nn.Module, bits: int) -> Iterator[None]:
    """Inside, weights and inputs that are quantized have that many bits, their parameters as they are.

    Intervals (`ewgs`, `ste`), clipping values (`pact`) and rules (`dorefa`) mean something at any bits.

    Raises:
        InputError: bits that a quantizer does not have.
    """
    found: list[Any] = [m for m in model.modules() if isinstance(getattr(m, "config", None), LearnedConfig)]
    old = [(quantizer, quantizer.config) for quantizer in found if quantizer.config.bits]
    try:
        for quantizer, config in old:
            quantizer.config = replace(config, bits=bits)
            check_sign(quantizer.config, bool(getattr(quantizer, "signed", 0) > 0))
        yield
    finally:
        for quantizer, config in old:
            quantizer.config = config
