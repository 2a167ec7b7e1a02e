"""A whole net into BSQ's bits and back, its widths in and out as `Nbit_dict`.

`Nbit_dict` is {layer name: [weight bits, bias bits]}; 0 bits: dead, or no bias.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bsq import planes
from bsq.bit_layer import BIAS, WEIGHT, BitLayer
from bsq.layers import BitConv2d, BitLinear
from lowbit.checkpoint.check import load_state_
from lowbit.errors import InputError
from lowbit.models.cifar_resnet import CifarResNet
from lowbit.models.surgery import of_kind, replace_, select
from lowbit.quant.conv import check_untied

Widths = Mapping[str, Sequence[int]]
Width = Callable[[str], int]  # layer name -> bits


def bit_layers(model: nn.Module) -> dict[str, BitLayer]:
    """BSQ's layers by name, in the order of the modules."""
    return of_kind(model, BitLayer)


def coverable(model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] | None = None) -> list[str]:
    """Names of the layers that `to_bits_` would convert.

    Args:
        model: a float net.
        include: patterns of layer names.
        exclude: patterns of names that stay float; None: the shortcut convolutions of the registered ResNets, as the
            authors have it, and nothing in other nets.

    Raises:
        InputError: a pattern matches nothing, or nothing is left to convert.
    """
    if exclude is None:
        shortcuts = isinstance(model, CifarResNet) and len(model.layer1) > 0
        exclude = ("*downsample*",) if shortcuts else ()
    names = select(model, lambda m: isinstance(m, nn.Conv2d | nn.Linear), include, exclude)
    if not names:
        raise InputError("no Conv2d or Linear is left to convert: widen --include or narrow --exclude")
    return names


@torch.no_grad()
def to_bits_(
    model: nn.Module, bits: int = 8, *, widths: Widths | None = None, include: Sequence[str] = ("*",),
    exclude: Sequence[str] | None = None,
) -> nn.Module:  # fmt: skip
    """Convert a net's Conv2d and Linear layers to bit form, in place.

    Args:
        model: any net of plain layers.
        bits: magnitude bits of weights and biases.
        widths: an `Nbit_dict` that overrides `bits` layer by layer: 0 weight bits build an empty plane; 0 bias bits
            leave `bits`, as in the authors' program (there 0 means that the layer has no bias).
        include: patterns, as in `coverable`.
        exclude: patterns, as in `coverable`.

    Returns:
        The model (the new layer, if the model was a single layer).

    Raises:
        InputError: a width out of range, a name in `widths` that is not converted, a layer whose weight cannot be
            followed or is shared with another, weights that are not finite.
    """
    names = coverable(model, include, exclude)
    check_untied(model, names)
    check_widths({"--Nbits": [bits, bits]}, lowest=1)
    widths = check_widths(widths or {})
    unknown = [name for name in widths if name not in names]
    if unknown:
        raise InputError(f"widths are given for {unknown[0]!r}, which is not a converted layer: {', '.join(names)}")
    new: dict[str, nn.Module] = {}
    for name in names:
        weight_bits, bias_bits = widths.get(name, (bits, bits))
        layer = model.get_submodule(name)
        kind: Any = BitConv2d if isinstance(layer, nn.Conv2d) else BitLinear
        try:
            new[name] = kind(layer, weight_bits, bias_bits or bits)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
    return replace_(model, new)


def check_widths(widths: Any, lowest: int = 0) -> dict[str, tuple[int, int]]:
    """An `Nbit_dict` as {name: (weight bits, bias bits)}.

    Raises:
        InputError: not of that shape, or a width out of range.
    """
    if not isinstance(widths, Mapping):
        raise InputError(f"Nbit_dict is a {type(widths).__name__}: {{layer name: [weight bits, bias bits]}} is needed")
    for name, pair in widths.items():
        right = isinstance(pair, list | tuple) and len(pair) == 2 and all(type(b) is int for b in pair)
        if not right or not all(lowest <= b <= planes.MAX_BITS for b in pair):
            allowed = f"two whole numbers from {lowest} to {planes.MAX_BITS}"
            raise InputError(f"bits of {name}: {pair!r} is not allowed; {allowed} (weight and bias) are")
    return {str(name): (pair[0], pair[1]) for name, pair in widths.items()}


def nbit_dict(model: nn.Module) -> dict[str, list[int]]:
    """The widths as the authors store them; dead tensors are 0."""
    return {name: [layer.bits(WEIGHT), layer.bits(BIAS)] for name, layer in bit_layers(model).items()}


def load_bits_(model: nn.Module, state_dict: Mapping[str, Tensor], widths: Widths) -> nn.Module:
    """Load a checkpoint of either form, of any widths, into a net converted by `to_bits_`.

    Args:
        model: in bit form of any width; takes over the checkpoint's form and widths.
        state_dict: keys as in the model (no `module.`).
        widths: the checkpoint's `Nbit_dict`.

    Raises:
        InputError: keys, shapes or widths that do not belong to this net or to each other.
    """
    layers, checked = bit_layers(model), check_widths(widths)
    if set(layers) != set(checked):
        odd = sorted(set(layers) ^ set(checked))[0]
        where = "the net but not in" if odd in layers else "Nbit_dict but not a bit layer of the net; it is in"
        raise InputError(f"Nbit_dict does not fit this net: {odd!r} is in {where} the checkpoint's Nbit_dict")
    for name, layer in layers.items():
        if f"{name}.{WEIGHT.latent}" in state_dict:
            layer.set_latent_bits_(*checked[name])
    load_state_(model, state_dict)
    for name, found in nbit_dict(model).items():
        if any(a and a != b for a, b in zip(found, checked[name], strict=True)):  # a dead tensor may be called 0 or 1
            raise InputError(f"layer {name} holds {found} bits, but the checkpoint's Nbit_dict says {checked[name]}")
    return model


def to_finetune_(model: nn.Module) -> nn.Module:
    """Every bit layer into finetune form (latent floats of fixed width)."""
    for layer in bit_layers(model).values():
        layer.to_finetune_()
    return model


def to_bit_form_(model: nn.Module) -> nn.Module:
    """Every bit layer back into bit form; the weights stay exactly."""
    for layer in bit_layers(model).values():
        layer.to_bits_()
    return model


def requantize_(model: nn.Module, max_bits: int | Width = 8) -> nn.Module:
    """`bsq.planes.requantize` of every layer: binary planes again, widths may grow by one. Parameters are replaced.

    Args:
        model: in bit form.
        max_bits: ceiling of the growth, of all layers or by name.
    """
    for name, layer in bit_layers(model).items():
        ceiling = max_bits if isinstance(max_bits, int) else max_bits(name)
        layer.change_planes_(partial(planes.requantize, max_bits=ceiling))
    return model


def prune_(model: nn.Module, threshold: float = 0.0, at_least: int | Width = 1) -> nn.Module:
    """`bsq.planes.prune` of every layer: empty planes go. Parameters are replaced.

    Args:
        model: in bit form.
        threshold: percent of a tensor's weights.
        at_least: planes that stay, of all layers or by name.
    """
    for name, layer in bit_layers(model).items():
        floor = at_least if isinstance(at_least, int) else at_least(name)
        layer.change_planes_(partial(planes.prune, threshold=threshold, at_least=floor))
    return model


def binary(model: nn.Module) -> bool:
    """Whether planes hold nothing but 0 and 1, as after a re-quantisation; latents are no planes."""
    layers = [layer for layer in bit_layers(model).values() if layer.form == "bit"]
    held = [plane for layer in layers for keys in layer.tensors for plane in layer.planes(keys)[:2]]
    return all(bool(((plane == 0) | (plane == 1)).all()) for plane in held)


def ones_per_plane(model: nn.Module) -> dict[str, dict[str, list[float]]]:
    """{layer: {"weight": percents, "bias": percents}}: set bits per plane, most significant first; bit form."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, layer in bit_layers(model).items():
        pairs = {keys.latent: layer.planes(keys) for keys in layer.tensors}
        table[name] = {key: planes.ones(p, n).tolist() for key, (p, n, _) in pairs.items()}
    return table
