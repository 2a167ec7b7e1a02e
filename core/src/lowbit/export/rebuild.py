"""How a packed net is built again: its architecture by name, then what that does not say.

That is the activation quantizers, of the net and of single layers' inputs, the PReLUs that binary nets have in the
places of ReLUs, and the sizes of slimmed layers: layers whose weight has the architecture's shape, and which compute
with a part of it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.resized import Sizes, resize_, sizes_of
from lowbit.models.surgery import of_kind, replace_
from lowbit.options import MAX_SIDE, MOST_CLASSES
from lowbit.quant.activations import FUNCTIONS, ActivationConfig, QuantActivation
from lowbit.quant.binary import RECTIFIERS, BinaryInput
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.entry import enter_
from lowbit.quant.layers import QuantizedLayer, quantizers
from lowbit.quant.learned import LearnedConfig, LearnedRange
from lowbit.quant.learned_layers import input_quantizer
from lowbit.quant.observers import ObservedActivation, ObserverConfig
from lowbit.quant.uniform import check_bits


def _whole(value: Any, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _sides(value: Any) -> bool:
    return all(_whole(side, 1, MAX_SIDE) for side in (value if isinstance(value, list | tuple) else [value]))


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1


ARGUMENTS: dict[str, Callable[[Any], bool]] = {  # of `timm.create_model`: whether a value is one
    "num_classes": lambda value: _whole(value, 0, MOST_CLASSES),
    "in_chans": lambda value: _whole(value, 1, MAX_SIDE),
    "img_size": _sides,
    "global_pool": lambda value: isinstance(value, str),
    "drop_rate": _share,
    "drop_path_rate": _share,
}
OF_INPUT = "input_quantizer"  # a layer's own quantizer, or one at a module's entry
Activations = list[tuple[str, dict[str, Any], list[str]]]  # (kind, settings, names)


def build(recipe: Mapping[str, Any]) -> nn.Module:
    """Timm's net of a recipe, weights not yet set.

    Raises:
        InputError: an unknown net, or an argument that is not allowed.
    """
    arch, arguments = recipe["arch"], dict(recipe.get("args", {}))
    unknown = set(arguments) - set(ARGUMENTS)
    if unknown or not isinstance(arch, str):
        raise InputError(f"{sorted(unknown) or arch!r} is not allowed; {sorted(ARGUMENTS)} are")
    wrong = next((name for name, value in arguments.items() if not ARGUMENTS[name](value)), None)
    if wrong is not None:
        raise InputError(f"{wrong} {arguments[wrong]!r:.80} is not allowed")
    return create_model(arch, **arguments)


def describe_activations(model: nn.Module, built: nn.Module) -> Activations:
    """Kind and settings of every activation quantizer, and of PReLUs in other places than in `built`.

    Raises:
        InputError: a kind that is not known here.
    """
    groups: dict[str, list[str]] = {}
    there = dict(built.named_modules())
    slopes = [name for name, module in of_kind(model, nn.PReLU).items() if type(there.get(name)) in RECTIFIERS]
    if slopes:
        groups[json.dumps(["slope", {}])] = slopes
    for name, quantizer in quantizers(model).items():
        if type(quantizer) is QuantActivation:
            said: list[Any] = ["largest", asdict(quantizer.config)]
        elif type(quantizer) is BinaryInput:
            said = ["binary", {}]
        elif type(quantizer) is ObservedActivation:
            grid = quantizer.grid()
            bits, observer = grid.bits if grid else 0, asdict(quantizer.observer.config)
            said = ["observed", {"function": quantizer.function, "bits": bits, "observer": observer}]
        elif isinstance(quantizer, LearnedRange):
            said = ["learned", asdict(quantizer.config)]
        else:
            raise InputError(f"{name}: a packed file cannot hold a {type(quantizer).__name__}")
        groups.setdefault(json.dumps(said), []).append(name)
    return [(*json.loads(said), names) for said, names in groups.items()]


def describe_sizes(model: nn.Module, plain: nn.Module, built: nn.Module) -> dict[str, dict[str, int]]:
    """Sizes of the slimmed layers, {layer: {attribute: number}}.

    Args:
        model: the net to pack.
        plain: the same after `to_plain_`.
        built: of `build`.

    Raises:
        InputError: a layer that is narrower and no ordinary one, so that its sizes do not say what it computes.
    """
    sizes: dict[str, dict[str, int]] = {}
    there = dict(built.named_modules())
    for name, layer in model.named_modules():
        old: Any = there.get(name)
        full = layer._parameters.get("weight")
        if not isinstance(layer, QuantizedLayer) or old is None or not sizes_of(old):
            continue
        new: Any = plain.get_submodule(name)
        if full is None and isinstance(old, _BatchNorm):  # a layer that holds one for each size
            full = old.weight
        if full is not None and full.shape == old.weight.shape != new.weight.shape:
            if isinstance(new, nn.Linear) and type(new).forward is not nn.Linear.forward:
                raise InputError(
                    f"{name} runs on a part of its inputs, which no net of ordinary layers does: no export"
                )
            sizes[name] = sizes_of(new)
    return sizes


def dress_(model: nn.Module, activations: Activations, sizes: Sizes) -> nn.Module:
    """Give a net of `build` its slimmed layers and its activation quantizers; returns it.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: what was described does not fit the net.
    """
    resize_(model, sizes)
    new: dict[str, nn.Module] = {}
    for kind, settings, names in activations:
        for name in names:
            quantizer, (parent, _, child) = KINDS[kind](settings), name.rpartition(".")
            layer = model.get_submodule(parent)
            if child != OF_INPUT:
                new[name] = quantizer
            elif isinstance(layer, nn.Linear):
                new[parent] = QuantLinear(layer, None, quantizer)
            elif isinstance(layer, nn.Conv2d):
                new[parent] = QuantConv2d(layer, None, quantizer)
            else:
                enter_(layer, quantizer)
    return replace_(model, new)


def _largest(settings: Mapping[str, Any]) -> nn.Module:
    return QuantActivation(ActivationConfig(**settings))


def _observed(settings: Mapping[str, Any]) -> nn.Module:
    if settings["function"] not in FUNCTIONS:
        raise ValueError(f"unknown function {settings['function']!r}")
    quantizer = ObservedActivation(settings["function"], ObserverConfig(**settings["observer"]))
    quantizer.a_bits.fill_(check_bits(settings["bits"], "activations"))
    quantizer.observer.seen.fill_(1)
    quantizer.mode = "quantized"
    return quantizer


def _learned(settings: Mapping[str, Any]) -> nn.Module:
    quantizer = input_quantizer(LearnedConfig(**settings))
    if quantizer is None:
        raise ValueError("a quantizer of 0 bits")
    return quantizer


def _without_settings(kind: type[nn.Module]) -> Callable[[Mapping[str, Any]], nn.Module]:
    def made(settings: Mapping[str, Any]) -> nn.Module:
        if settings:
            raise ValueError(f"settings {settings!r:.80} of a {kind.__name__}, which has none")
        return kind()

    return made


KINDS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {
    "largest": _largest,
    "observed": _observed,
    "learned": _learned,
    "binary": _without_settings(BinaryInput),
    "slope": _without_settings(nn.PReLU),
}
