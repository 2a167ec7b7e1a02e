"""Which layer gets which bits: one object derived from a network, and the draw of the bits of a step.

SSQL's policy (the authors' BIT_CONFIG, written out there by hand for each depth): the first convolution at 8/8 whatever
is drawn; activations quantized where there is an activation function, so neither after a branch's last convolution nor
after a shortcut; the classifier float; a projector's weights at 8, its activations float. Quantized activations in
ResNet-18, 34 and 50: 17, 33 and 49.

Activations are called by what they follow, as the authors call them: by the layer whose output they take ("conv1",
"layer1.0.conv1"), or by their block ("layer1.0") where they follow a sum.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import select
from lowbit.quant.bitwidths import quantize_uniform_
from lowbit.quant.observers import ObserverConfig
from lowbit.quant.places import Places, function_of, trace_places, unknown_activations
from lowbit.quant.uniform import WeightConfig, check_bits
from ssql.config import Quant

STEM_BITS = PROJECTOR_BITS = 8
OBSERVERS = {"MINMAX": "minmax", "MOMENTUM_MINMAX": "ema", "MSE": "mse", "HISTOGRAM": "mse", "GAUSSIAN": "gaussian"}
W_RANGE, A_RANGE = (2, 9), (4, 9)  # the authors': upper ends excluded
Row = dict[str, int | None]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BitPolicy:
    """Pins of a network: bits that stay whatever is drawn. None: what is drawn; 0: never quantized.

    Attributes:
        weights: {layer name: pin} of every convolution and linear layer.
        activations: {activation module: pin} of every activation function.
        follows: {activation module: the layer or block that it is called by}.
    """

    weights: Mapping[str, int | None]
    activations: Mapping[str, int | None]
    follows: Mapping[str, str]

    @property
    def points(self) -> list[str]:
        """Names, by layer or block, of the activations that can be quantized."""
        return [self.follows[name] for name, pin in self.activations.items() if pin != 0]

    def table(self, w: int, a: int, keep_pins: bool = False) -> dict[str, Row]:
        """The bits of every layer and block when (w, a) is set, as the authors list them: {"conv1": {"w": 8, "a": 8}}.

        A block has no weights: its "w" is None. `keep_pins`: see `lowbit.quant.bitwidths.set_bits_`.
        """
        acts = {self.follows[n]: effective(pin, a, keep_pins) for n, pin in self.activations.items()}
        rows: dict[str, Row] = {
            short(name): {"w": effective(pin, w, keep_pins), "a": acts.get(name, 0)}
            for name, pin in self.weights.items()
        }
        return rows | {name: {"w": None, "a": bits} for name, bits in acts.items() if name not in self.weights}

    def override(self, config: Mapping[str, Mapping[str, int]]) -> "BitPolicy":
        """A policy with other pins, given as the authors' YAML files have them.

        Args:
            config: {layer or block: {"w": bits, "a": bits}}, either may be missing.

        Raises:
            InputError: an unknown name, bits out of range, or activation bits where there is no activation function.
        """
        weights, activations = dict(self.weights), dict(self.activations)
        full = {short(name): name for name in weights}
        modules = {called: module for module, called in self.follows.items()}
        for key, pins in config.items():
            layer = full.get(short(key))
            if layer is None and key not in modules:
                near = get_close_matches(key, [*full, *modules], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise InputError(f"bits are given for {key!r}, which is no layer or block of this net{hint}")
            for side, bits in pins.items():
                if side == "w" and layer is not None:
                    weights[layer] = check_bits(bits, f"weights of {key}")
                elif side == "a" and key in modules:
                    activations[modules[key]] = check_bits(bits, f"activations of {key}")
                elif side not in ("w", "a") or bits != 0:
                    raise InputError(f"{key}: {side}: {bits} cannot be set, there is nothing of that kind to quantize")
        return replace(self, weights=weights, activations=activations)


def short(name: str) -> str:
    """The authors' name of a layer: a shortcut's convolution is called by its branch (`layer2.0.downsample`)."""
    head, _, last = name.rpartition(".")
    return head if last.isdigit() and head.endswith("downsample") else name


def effective(pin: int | None, drawn: int, keep_pins: bool = False) -> int:
    """The bits of one place: its pin, else what is drawn; full precision (0) overrides pins unless `keep_pins`."""
    return drawn if pin is None or (drawn == 0 and not keep_pins) else pin


def derive_policy(
    model: nn.Module,
    input_size: tuple[int, int, int] | None = None,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
) -> BitPolicy:
    """SSQL's policy for any net, from one forward of a blank picture; what cannot be quantized is reported in the log.

    Args:
        model: a float net; its classifier (timm's `get_classifier`) may be replaced by a projector.
        input_size: (C, H, W); None: the net's own, 3x32x32 where it names none.
        include: patterns of layers and activation modules to quantize.
        exclude: patterns of those that stay float.

    Raises:
        InputError: a pattern matches nothing.
    """
    found = trace_places(model, input_size or _own_size(model), "MODEL.INPUTSHAPE")
    _tell_floats(model, found)
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None  # type: ignore[operator]
    of_head = {id(module) for module in classifier.modules()} if isinstance(classifier, nn.Module) else set()
    chosen = set(select(model, _quantizable, include, exclude))
    weights: dict[str, int | None] = {}
    for name in found.layers:
        layer = model.get_submodule(name)
        in_head = id(layer) in of_head
        head_bits = 0 if layer is classifier else PROJECTOR_BITS
        pin = head_bits if in_head else (STEM_BITS if name == found.layers[0] else None)
        weights[name] = pin if name in chosen else 0
    activations: dict[str, int | None] = {}
    for name, called in found.activations.items():
        floats = id(model.get_submodule(name)) in of_head or name not in chosen
        activations[name] = 0 if floats else (STEM_BITS if called == found.layers[0] else None)
    return BitPolicy(weights, activations, found.activations)


def _tell_floats(model: nn.Module, found: Places) -> None:
    """Activations that stay float although nobody asked for it."""
    unknown = unknown_activations(model)
    if unknown:
        log.warning("activations that bits do not reach, since no quantized form of them is known: %s", _shown(unknown))
    elif not found.activations:
        log.warning("this net has no activation modules, so its activations stay float at any bits; weights do not")


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def policy_of(encoder: nn.Module, quant: Quant, size: tuple[int, int, int]) -> BitPolicy:
    """The pins derived from the network, or exactly those of `QUANT.BIT_CONFIG`, as the authors list them.

    A classifier is float, as in the authors' program, even where the list (their ImageNet evaluation) says otherwise.
    So are outputs without an activation function, which the authors' program quantizes unless the list says 0.

    Raises:
        InputError: a name in the list that is not of this net.
    """
    policy = derive_policy(encoder, size)
    if not quant.BIT_CONFIG:
        return policy
    unpinned = replace(policy, weights=dict.fromkeys(policy.weights), activations=dict.fromkeys(policy.activations))
    listed = unpinned.override(quant.BIT_CONFIG[0])  # type: ignore[arg-type]  # its inner keys are "w" and "a"
    classifier = {name: 0 for name, pin in policy.weights.items() if pin == 0}
    stated = {short(name) for name, pins in quant.BIT_CONFIG[0].items() if "a" in pins}
    ends = [name for name in policy.weights if name not in classifier and name not in policy.follows.values()]
    unlisted = [short(name) for name in ends if short(name) not in stated]
    if quant.A.BIT and unlisted:
        said = "QUANT.BIT_CONFIG states no a of %s: no activation function follows, so these outputs stay float"
        log.warning(said, _shown(unlisted))
    return replace(listed, weights={**listed.weights, **classifier})


def quantize_encoder_(encoder: nn.Module, quant: Quant, size: tuple[int, int, int]) -> nn.Module:
    """Quantize a net as the config says, in place, in mode `float`.

    Args:
        encoder: float.
        quant: section QUANT.
        size: (C, H, W) of the pictures.

    Raises:
        InputError: a name in `BIT_CONFIG` that is not of this net.
    """
    weight = WeightConfig(
        grid=quant.W.GRID,
        per_channel=quant.W.GRANULARITY == "channelwise",
        differentiable_scale=quant.W.SCALE == "differentiable",
    )
    observer = ObserverConfig(OBSERVERS[quant.A.OBSERVER_METHOD.NAME])
    return quantize_uniform_(encoder, policy_of(encoder, quant, size), weight, observer)


def draw_bits(
    generator: torch.Generator, w_range: tuple[int, int] = W_RANGE, a_range: tuple[int, int] = A_RANGE
) -> tuple[Tensor, Tensor]:
    """One pair (weight bits, activation bits) for the whole net, uniform and independent; 0-dimensional tensors.

    Args:
        generator: of `Clock.generator("bits")`, so that all ranks draw the same.
        w_range: (lowest, one above the highest).
        a_range: likewise.
    """
    w, a = (torch.randint(low, high, (), generator=generator) for low, high in (w_range, a_range))
    return w, a


def _quantizable(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear) or function_of(module) is not None


def _own_size(model: nn.Module) -> tuple[int, int, int]:
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = config.get("input_size", (3, 32, 32))
    return channels, height, width
