"""The places of a net that can be quantized: its layers, its activation functions, and what each activation follows."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from timm.layers import activations as timms
from timm.layers import activations_me as lean
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import InputError
from lowbit.models.surgery import replace_, run_blank, select
from lowbit.quant.activations import NOT_NEGATIVE, ActivationConfig, QuantActivation

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
BETWEEN = (_BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d)  # what may stand between a layer and its activation


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
        include: patterns of module names; None: every activation function but the stem's.
        exclude: patterns of names that stay float.

    Raises:
        InputError: a pattern matches no activation module.
    """
    if include is not None:
        return select(model, lambda m: function_of(m) is not None, include, exclude)
    stem = _stem(model)
    return [name for name in select(model, lambda m: function_of(m) is not None, exclude=exclude) if name != stem]


def _stem(model: nn.Module) -> str | None:
    """The first activation: the stem's, unless it follows a whole block, as in nets that have none there (ViT)."""
    layers = 0
    for name, module in model.named_modules():
        function = function_of(module)
        if function is not None:
            return name if function in NOT_NEGATIVE or layers <= 1 else None
        layers += isinstance(module, nn.Conv2d | nn.Linear)
    return None


def quantized_activations(model: nn.Module) -> tuple[int, int]:
    """How many activations are rounded, and how many activation functions there are, those of unknown kind included."""
    functions = [module for module in model.modules() if function_of(module) is not None]
    rounded = sum(isinstance(module, QuantActivation) and module.config.bits > 0 for module in functions)
    return rounded, len(functions) + len(unknown_activations(model))


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


class Places(NamedTuple):
    """What the forward showed.

    Attributes:
        layers: names of convolutions and linear layers, in the order of their calls.
        activations: {activation module: the layer whose output it takes, else its block (its parent module); its own
            name where that is taken}, in the order of the calls.
    """

    layers: list[str]
    activations: dict[str, str]


class _Tracer:
    """Follows each layer's output through normalisation to the activation that takes it."""

    def __init__(self) -> None:
        self.places = Places([], {})
        self.sources: dict[int, tuple[str, int]] = {}  # id of a tensor -> the layer it comes from, its version then
        self.kept: list[Tensor] = []  # so that no id is used twice
        self.inside: list[
            str | None
        ] = []  # of each normalisation being run, for the fused ones that hold an activation
        self.acted = False

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.inside.append(self._source(args[0]))
        self.acted = False

    def after_pass(self, module: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
        source = self.inside.pop()
        if source is not None and not self.acted:
            self._set(out, source)

    def after_layer(self, name: str, out: Tensor) -> None:
        if name not in self.places.layers:
            self.places.layers.append(name)
        self._set(out, name)

    def before_activation(self, name: str, args: tuple[Any, ...]) -> None:
        source = self._source(args[0]) or (self.inside[-1] if self.inside else None)
        self.acted = True
        called = source or name.rpartition(".")[0] or name
        taken = {self.places.activations[other] for other in self.places.activations if other != name}
        self.places.activations.setdefault(name, name if called in taken else called)

    def _source(self, x: Tensor) -> str | None:
        """The layer that `x` comes from, unless something was added to it in place meanwhile."""
        name, version = self.sources.get(id(x), (None, 0))
        return name if x._version == version else None

    def _set(self, out: Tensor, source: str) -> None:
        self.kept.append(out)
        self.sources[id(out)] = source, out._version


def trace_places(model: nn.Module, input_size: tuple[int, int, int], setting: str = "their size") -> Places:
    """Run one blank picture through the net, in evaluation mode (restored after).

    Args:
        model: any float net.
        input_size: (C, H, W) of a picture.
        setting: what sets the size of pictures, for the message where the net cannot take them.
    """
    tracer, handles = _Tracer(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: tracer.after_layer(name, out)))
        elif function_of(module) is not None:
            handles.append(
                module.register_forward_pre_hook(lambda m, args, name=name: tracer.before_activation(name, args))
            )
        elif isinstance(module, BETWEEN):
            handles.append(module.register_forward_pre_hook(tracer.before))
            handles.append(module.register_forward_hook(tracer.after_pass))
    run_blank(model, input_size, handles, setting)
    return tracer.places
