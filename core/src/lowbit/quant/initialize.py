"""The start of learned quantizers from data: one forward, in which each layer sees already quantized inputs.

Released quantizers (`LearnedConfig.released`) pass on what they get in this forward, as their programs' do: they start
from the inputs of the float net.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import InputError
from lowbit.quant.entry import entered
from lowbit.quant.ewgs import EwgsWeight
from lowbit.quant.learned import FromData
from lowbit.quant.learned_layers import learned_layers


@torch.no_grad()
def initialize_(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Set the parameters of every learned quantizer from whole batches; returns the model.

    One forward of all of them together, in which batch norm computes and moves its statistics as in training (unless it
    was in evaluation mode) and nothing is dropped. All ranks have rank 0's tensors afterwards. Synchronise batch norm
    over ranks after it: here every rank holds the whole batch.

    Args:
        model: of `quantize_learned_`.
        batches: pictures (B, C, H, W), the same on every rank, on the model's device; at least one.

    Raises:
        InputError: no picture, a layer that the forward does not reach, or inputs that hold NaN.
    """
    found = list(batches)
    if not sum(map(len, found)):
        raise InputError("no picture to initialise the quantizers from: give at least one batch")
    layers: dict[str, nn.Module] = {**learned_layers(model), **entered(model)}
    modes = {module: module.training for module in model.modules()}
    waiting = dict.fromkeys(layers.values())

    def before(layer: Any, args: tuple[Any, ...]) -> None:
        if layer in waiting:
            del waiting[layer]
            _start_(layer, args[0])

    handles = [layer.register_forward_pre_hook(before) for layer in layers.values()]
    released = (module for module in modes if getattr(getattr(module, "config", None), "released", False))
    handles += [quantizer.register_forward_hook(_pass_on) for quantizer in released]
    try:
        for module in model.modules():
            module.training = modes[module] and isinstance(module, _BatchNorm)
        model(torch.cat(found))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, 0)
    names = [name for name, layer in layers.items() if layer in waiting or uninitialized(layer)]
    if names:
        raise InputError(f"layer {names[0]} got no input, or one with NaN: exclude it, or give other pictures")
    return model


def uninitialized(model: nn.Module) -> bool:
    """Whether a parameter still waits for data (reads tensors back)."""
    return any(bool(parameter.isnan().any()) for parameter in model.parameters())


def _pass_on(quantizer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Any:
    """In place of what was quantized, what there was to quantize."""
    return args[0]


def _start_(layer: Any, x: Tensor) -> None:
    """Weight (an entry has none) first, then input, then the output scale that both ask for."""
    weight, given = getattr(layer, "weight_quantizer", None), layer.input_quantizer
    for quantizer, tensor in ((weight, getattr(layer, "weight", x)), (given, x)):
        if isinstance(quantizer, FromData):
            quantizer.initialize_(tensor.to(torch.promote_types(tensor.dtype, torch.float32)))
    if isinstance(weight, EwgsWeight):
        quantized = x if given is None else given(x)
        weight.match_(layer.compute(x, layer.weight), layer.compute(quantized, weight(layer.weight)))
