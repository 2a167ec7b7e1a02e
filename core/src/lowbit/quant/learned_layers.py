"""Layers under learned quantizers: which ones, with which, and their parameters.

quantize_learned_(net, layer_points(net), lambda name: (LearnedConfig("lsq", 4), LearnedConfig("lsq", 4)))
initialize_(net, [first_batch])
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.create import classifiers, picture_settings
from lowbit.models.surgery import of_kind, replace_, select
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.dorefa import DorefaInput, DorefaWeight
from lowbit.quant.entry import enter_, entries
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
    model: nn.Module,
    points: Sequence[str],
    config: Callable[[str], tuple[LearnedConfig, LearnedConfig]],
    input_size: tuple[int, int, int] | None = None,
) -> nn.Module:
    """Put quantizers of weight and input into the named layers, in place; `initialize_` has still to set them.

    Parameters stay the same objects and keep their keys; quantizers add `<layer>.weight_quantizer.*` and
    `<layer>.input_quantizer.*`. Released ones of layers that read what a module around them receives are one, at its
    entry (`lowbit.quant.entry`): `<module>.input_quantizer.*`.

    Args:
        model: float.
        points: names, usually of `layer_points`.
        config: of weight and input, by the layer's name; 0 bits: float.
        input_size: (C, H, W) of a picture, which released ones look for such modules with; None: the net's own.

    Returns:
        The model (the new layer, if the model was a single layer).

    Raises:
        InputError: a layer whose weight cannot be followed, a configuration that does not exist, or released ones at
            one entry that differ.
    """
    new: dict[str, nn.Module] = {}
    configs = {name: config(name) for name in points}
    shared = _shared(model, {name: given for name, (_, given) in configs.items()}, input_size)
    at_entries: dict[str, nn.Module] = {}
    for name, (weight, given) in configs.items():
        layer = model.get_submodule(name)
        try:
            quantizers = weight_quantizer(weight), input_quantizer(given)
            own = (quantizers[0], None) if name in shared else quantizers
            if isinstance(layer, nn.Conv2d):
                new[name] = QuantConv2d(layer, *own)  # type: ignore[arg-type]
            elif isinstance(layer, nn.Linear):
                new[name] = QuantLinear(layer, *own)  # type: ignore[arg-type]
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
        like: Tensor = layer.weight  # type: ignore[assignment]
        for quantizer in filter(None, quantizers):
            quantizer.to(like.device, torch.float64 if like.dtype == torch.float64 else torch.float32)
        if name in shared and quantizers[1] is not None:
            at_entries[shared[name]] = quantizers[1]
    for name, quantizer in at_entries.items():
        enter_(model.get_submodule(name), quantizer)
    return replace_(model, new)


def _shared(
    model: nn.Module, given: Mapping[str, LearnedConfig], input_size: tuple[int, int, int] | None
) -> dict[str, str]:
    """`entries` of the layers whose input quantizer is a released one; all at one entry have the same."""
    released = [name for name, config in given.items() if config.released and config.bits]
    if not released:
        return {}
    found = entries(model, released, input_size or tuple(picture_settings(model)["input_size"]))
    configs: dict[str, LearnedConfig] = {}
    for name, entry in found.items():
        if configs.setdefault(entry, given[name]) != given[name]:
            raise InputError(f"layer {name}: what {entry} receives has one released quantizer, so one number of bits")
    return found


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
    kinds = (*WEIGHTS.values(), *INPUTS.values())
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, kinds))
    return {key: parameter for name, module in found for key, parameter in module.named_parameters(name)}


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
