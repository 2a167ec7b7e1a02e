"""One forward of a net that tells, for each layer, how often its weights are used and how its input is quantized."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from lowbit.models.surgery import run_blank
from lowbit.quant.activations import QuantActivation
from lowbit.quant.conv import ObservedActivation
from lowbit.quant.layers import QuantizedLayer, quantized_layers

ActivationQuantizer = QuantActivation | ObservedActivation
PASSES = (nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.Flatten)  # of these a quantized input stays on its grid


class Traced(NamedTuple):
    """What the forward of one picture showed of a convolution or linear layer.

    Attributes:
        outputs: elements of its output, over all calls; each takes as many multiply-accumulates as the weight has
            elements per output channel.
        quantizer: the activation quantizer whose output is the layer's input; None: float.
    """

    outputs: int
    quantizer: ActivationQuantizer | None


def is_layer(module: nn.Module) -> bool:
    """Whether a module multiplies by weights: a quantized layer, Conv2d or Linear."""
    return isinstance(module, nn.Conv2d | nn.Linear | QuantizedLayer)


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Traced]:
    """Run one blank picture through the net, in evaluation mode (restored after).

    A layer's input counts as quantized if it *is* the output of a quantizer, or that through dropout, max-pooling or
    flattening. After anything else (an average pool, a sum, a concatenation of several grids) it is float.

    Args:
        model: any net.
        input_size: (C, H, W) of a picture.

    Returns:
        {layer name: Traced} of the layers that ran.
    """
    alive: dict[int, tuple[Tensor, ActivationQuantizer]] = {}  # tensors are kept, so that no id is used twice
    found: dict[str, Traced] = {}

    def after(name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        source = alive.get(id(args[0]))
        if isinstance(module, ActivationQuantizer):
            if module.bits:
                alive[id(out)] = (out, module)
        elif isinstance(module, PASSES):
            if source is not None:
                alive[id(out)] = (out, source[1])
        else:
            quantizer = None if source is None else source[1]
            before = found.get(name, Traced(0, quantizer))
            same = before.quantizer is quantizer
            found[name] = Traced(before.outputs + out.numel(), quantizer if same else None)

    handles = [
        module.register_forward_hook(lambda module, args, out, name=name: after(name, module, args, out))
        for name, module in model.named_modules()
        if is_layer(module) or isinstance(module, (QuantActivation, ObservedActivation, *PASSES))
    ]
    run_blank(model, input_size, handles)
    return found


def set_inputs_(model: nn.Module, traced: dict[str, Traced]) -> nn.Module:
    """Set `act_bits` and `act_range` of every quantized layer from what `trace` found; returns the model."""
    for name, layer in quantized_layers(model):
        quantizer = traced[name].quantizer if name in traced else None
        layer.act_bits = None if quantizer is None else quantizer.bits
        largest = None if quantizer is None else quantizer.largest
        layer.act_range = None if largest is None else float(largest)
    return model
