"""Which activations of a net are quantized: by kind and by name patterns."""

from collections.abc import Callable, Sequence

from timm.layers import activations as timms
from timm.layers import activations_me as lean
from torch import nn

from lowbit.errors import InputError
from lowbit.models.surgery import replace_, select
from lowbit.quant.activation import ActivationConfig, QuantActivation

KINDS: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    timms.Swish: "silu",
    lean.SwishMe: "silu",
    timms.GELU: "gelu",
    timms.GELUTanh: "gelu_tanh",
    timms.QuickGELU: "quick_gelu",
    nn.Hardswish: "hardswish",
    timms.HardSwish: "hardswish",
    lean.HardSwishMe: "hardswish",
    nn.Mish: "mish",
    timms.Mish: "mish",
    lean.MishMe: "mish",
    timms.HardMish: "hard_mish",
    lean.HardMishMe: "hard_mish",
    nn.SELU: "selu",
}
DEFAULTS: dict[type[nn.Module], tuple[str, str, float]] = {  # known at torch's own value of their parameter alone
    nn.LeakyReLU: ("leaky_relu", "negative_slope", 0.01),
    nn.ELU: ("elu", "alpha", 1.0),
    nn.CELU: ("celu", "alpha", 1.0),
}
FAMILY = (nn.ReLU.__module__, timms.__name__, lean.__name__)
GATES = ("Sigmoid", "Tanh", "Softmax", "HardSigmoid", "Hardsigmoid", "HardSigmoidMe", "MultiheadAttention")


def function_of(module: nn.Module) -> str | None:
    """The quantizable activation function that a module computes; None for any other module.

    Sigmoids and the like are gates that scale something else, and stay float.
    """
    if isinstance(module, QuantActivation):
        return module.config.function
    if isinstance(module, nn.GELU):
        return "gelu" if module.approximate == "none" else "gelu_tanh"
    if type(module) in DEFAULTS:
        name, parameter, value = DEFAULTS[type(module)]
        return name if getattr(module, parameter) == value else None
    return next((name for kind, name in KINDS.items() if type(module) is kind), None)


def unknown_activations(model: nn.Module) -> list[str]:
    """Activation modules without such a function, as "name (class)": those with weights or with an unusual slope."""
    return [
        f"{name} ({type(module).__name__})"
        for name, module in model.named_modules()
        if type(module).__module__ in FAMILY and type(module).__name__ not in GATES and function_of(module) is None
    ]


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
