"""Checkpoints of the authors' programs, by their keys.

CIFAR: {model, ...} under their names (`linear`, `conv2d`, `classifier`); a quantized layer holds its interval (lW, uW,
lA, uA) and output_scale, and nowhere its number of levels. Tiny-ImageNet: {state_dict, arch, ...}, float nets alone:
quantized ones are graphs of torch 1.10 in which one quantizer feeds several layers.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from lowbit.checkpoint.check import without_prefix
from lowbit.errors import InputError
from lowbit.models.cifar_vgg import DEPTHS
from lowbit.models.layouts import blocks_of

LEARNED = {
    "lW": "weight_quantizer.interval.low", "uW": "weight_quantizer.interval.high",
    "lA": "input_quantizer.interval.low", "uA": "input_quantizer.interval.high",
    "output_scale": "weight_quantizer.output_scale",
}  # fmt: skip
TORCHVISION = {  # nets that have torchvision's keys, by one that no other has
    "features.18.0.weight": "tiny_mobilenetv2", "stage4.0.branch1.0.weight": "tiny_shufflenetv2",
    "features.12.squeeze.weight": "tiny_squeezenet",
}  # fmt: skip
LEFT_OUT = ("lA_t", "uA_t", "init", "bkwd_scaling_factorW", "bkwd_scaling_factorA")  # without effect in a forward
RENAMED = {r"^linear\.": "fc.", r"^classifier\.": "fc.", r"^block(\d)": r"layer\1", r"\.conv2d\.": ".conv."}


class Theirs(NamedTuple):
    """A net of theirs: its timm name, its tensors under our keys, and the layers that are quantized."""

    arch: str
    state: dict[str, Tensor]
    layers: list[str]


def parse(tensors: Mapping[str, Tensor]) -> Theirs | None:
    """Out of a file's tensors by their places; None: not one of their own nets (ResNet-18 has torchvision's keys).

    Raises:
        InputError: a quantized net of their Tiny-ImageNet program.
    """
    if any("_fake_quant" in key for key in tensors):
        raise InputError(
            "it is a quantized graph of the authors' Tiny-ImageNet program, which is not read: start from float weights"
        )
    roots = ("model.", "state_dict.", "")
    root = next(root for root in roots if not root or any(key.startswith(root) for key in tensors))
    state = {key.removeprefix(root): value for key, value in tensors.items() if key.startswith(root)}
    state = without_prefix(state, "module.")
    arch = next((TORCHVISION[key] for key in TORCHVISION if key in state), None)
    if arch is not None:
        return Theirs(arch, state, [])
    arch = _arch(state)
    if arch is None:
        return None
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        layer, _, leaf = key.rpartition(".")
        if leaf not in LEFT_OUT:
            name = f"{layer}.{LEARNED.get(leaf, leaf)}" if layer else leaf
            for old, new in RENAMED.items():
                name = re.sub(old, new, name)
            renamed[name] = value
    ending = ".weight_quantizer.interval.low"
    return Theirs(arch, renamed, [key.removesuffix(ending) for key in renamed if key.endswith(ending)])


def _arch(state: Mapping[str, Tensor]) -> str | None:
    if "linear.weight" in state and "bn2.running_mean" in state:
        return {3: "cifar_resnet20_pad", 5: "cifar_resnet32_pad"}.get(blocks_of(state)[0])
    found = [re.match(r"(layer|block)(\d)\.(\d)\.conv2d\.weight", key) for key in state]
    places = {(match[2], match[3]) for match in found if match}
    depths = tuple(sum(stage == str(number) for stage, _ in places) for number in range(5))
    return next((name for name, known in DEPTHS.items() if known == depths), None)
