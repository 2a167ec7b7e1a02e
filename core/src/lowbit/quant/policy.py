"""Which activations of a net are quantized: by kind and by name patterns."""

from collections.abc import Callable, Sequence

from torch import nn

from lowbit.errors import InputError
from lowbit.models.surgery import replace_, select
from lowbit.quant.activation import ActivationConfig, QuantActivation

KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


def function_of(module: nn.Module) -> str | None:
    """The quantizable activation function that a module computes; None for any other module."""
    if isinstance(module, QuantActivation):
        return module.config.function
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    return next((name for kind, name in KINDS.items() if type(module) is kind), None)


def activation_points(model: nn.Module, include: Sequence[str] | None = None, exclude: Sequence[str] = ()) -> list[str]:
    """Names of the activation modules to quantize.

    Args:
        model: any net.
        include: patterns of module names; None: every ReLU and ReLU6 but the first, which is the stem's. SiLU, GELU and
            Hardswish stay float unless a pattern names them.
        exclude: patterns of names that stay float.

    Raises:
        InputError: a pattern matches no activation module.
    """
    if include is not None:
        return select(model, lambda m: function_of(m) is not None, include, exclude)
    kinds = ("relu", "relu6", "pact")
    names = select(model, lambda m: function_of(m) in kinds, exclude=exclude)
    everything = select(model, lambda m: function_of(m) in kinds)
    return [name for name in names if name != everything[0]] if everything else []


def quantize_activations_(
    model: nn.Module, points: Sequence[str], config: Callable[[str], ActivationConfig]
) -> nn.Module:
    """Put a quantizer in the place of each activation named in `points`.

    Args:
        model: changed in place.
        points: names, usually of `activation_points`.
        config: the quantizer's configuration for the function that the module computed ("relu", "relu6", ...).

    Raises:
        InputError: a name is not an activation module.
    """
    new: dict[str, nn.Module] = {}
    for name in points:
        function = function_of(model.get_submodule(name))
        if function is None:
            raise InputError(f"{name!r} is {type(model.get_submodule(name)).__name__}, not an activation module")
        new[name] = QuantActivation(config(function))
    reference = next(model.parameters(), None)
    if reference is not None:
        for module in new.values():
            module.to(reference.device, reference.dtype if reference.is_floating_point() else None)
    return replace_(model, new)
