"""One forward of a net that tells, for each layer, how often its weights are used and how its input is quantized."""

from typing import Any, NamedTuple

from torch import Tensor, nn

from lowbit.models.surgery import run_blank
from lowbit.quant.layers import ActivationQuantizer, Grid, QuantizedLayer, quantizers

PASSES = (nn.Dropout, nn.Dropout2d, nn.MaxPool2d, nn.Flatten)  # of these a quantized input stays on its grid


class Traced(NamedTuple):
    """What the forward of one picture showed of a convolution, linear or quantized layer.

    Attributes:
        outputs: elements of its output, over all calls; each takes as many multiply-accumulates as the weight has
            elements per output channel.
        quantizer: the activation quantizer whose output is the layer's input; None: there is none.
        input_grid: of the input as the layer computes with it: its own, else the quantizer's; None: float.
    """

    outputs: int
    quantizer: ActivationQuantizer | None
    input_grid: Grid | None


def trace(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Traced]:
    """Run one blank picture through the net, in evaluation mode (restored after).

    A layer's input counts as quantized if the layer quantizes it, or if it *is* the output of a quantizer, or that
    through dropout, max-pooling or flattening. After anything else (an average pool, a sum, a concatenation of several
    grids) it is float.

    Args:
        model: any net.
        input_size: (C, H, W) of a picture.

    Returns:
        {layer name: Traced} of the layers that ran.
    """
    # (tensor, its version, quantizer): tensors are kept, so that no id is used twice
    alive: dict[int, tuple[Tensor, int, ActivationQuantizer]] = {}
    outputs: dict[str, int] = {}
    sources: dict[str, ActivationQuantizer | None] = {}

    def source_of(x: Tensor) -> ActivationQuantizer | None:
        found = alive.get(id(x))
        if found is None or found[1] != x._version:  # something was added to it in place
            return None
        return found[2]

    def after_quantizer(module: Any, args: tuple[Any, ...], out: Tensor) -> None:
        alive[id(out)] = out, out._version, module

    def after_pass(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        quantizer = source_of(args[0])
        if quantizer is not None:
            after_quantizer(quantizer, args, out)

    def after_layer(name: str, args: tuple[Any, ...], out: Tensor) -> None:
        quantizer = source_of(args[0])
        outputs[name] = outputs.get(name, 0) + out.numel()
        same = sources.setdefault(name, quantizer) is quantizer
        sources[name] = quantizer if same else None

    acts, handles, layers = quantizers(model), [], dict[str, nn.Module]()
    for name, module in model.named_modules():
        if _is_layer(module):
            layers[name] = module
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: after_layer(name, args, out)))
        elif name in acts:
            if acts[name].grid() is not None:
                handles.append(module.register_forward_hook(after_quantizer))
        elif isinstance(module, PASSES):
            handles.append(module.register_forward_hook(after_pass))
    run_blank(model, input_size, handles)
    return {name: Traced(outputs[name], sources[name], _input(layers[name], sources[name])) for name in outputs}


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, QuantizedLayer | nn.Conv2d | nn.Linear)


def _input(layer: nn.Module, quantizer: ActivationQuantizer | None) -> Grid | None:
    own = layer.input_grid() if isinstance(layer, QuantizedLayer) else None
    return quantizer.grid() if own is None and quantizer is not None else own
