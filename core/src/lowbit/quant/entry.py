"""One quantizer for a tensor that several read: at the entry of the module that receives it, its shortcut included.

The programs released for LSQ, PACT and DoReFa quantize each tensor once, for all that reads it; a layer's own
`input_quantizer` serves that layer alone.
"""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from lowbit.models.surgery import run_blank


def enter_(module: nn.Module, quantizer: nn.Module) -> None:
    """From now on `module` receives its first argument quantized, by its new child `input_quantizer`."""
    module.input_quantizer = quantizer
    module.register_forward_pre_hook(_quantized)


def _quantized(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return module.input_quantizer(args[0]), *args[1:]


def entered(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that `enter_` changed, by name."""
    return {name: module for name, module in model.named_modules() if _quantized in module._forward_pre_hooks.values()}


def entries(model: nn.Module, layers: Collection[str], input_size: tuple[int, int, int]) -> dict[str, str]:
    """{layer: the outermost module around it that receives the very tensor which the layer reads}, where there is one.

    The net itself does not count, nor does nn.Sequential, which reads nothing.

    Args:
        model: any net, run once on a blank picture.
        layers: names of convolutions and linear layers.
        input_size: (C, H, W) of a picture.

    Raises:
        InputError: the net does not take pictures of this size.
    """
    received: dict[str, tuple[Tensor, int]] = {}  # with its version: a ReLU may change it in place
    found: dict[str, set[str]] = {}

    def before(name: str, args: tuple[Any, ...]) -> None:
        x = args[0] if args else None
        if not isinstance(x, Tensor):
            return
        if name in layers:
            parts = name.split(".")
            around = [".".join(parts[:depth]) for depth in range(1, len(parts))]
            same = (a for a in around if a in received and received[a][0] is x and received[a][1] == x._version)
            found.setdefault(name, set()).add(next(same, ""))
        received[name] = x, x._version

    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: before(name, args))
        for name, module in model.named_modules()
        if name and type(module).forward is not nn.Sequential.forward
    ]
    run_blank(model, input_size, handles, values=False)
    return {name: entry for name, (entry, *others) in found.items() if entry and not others}
