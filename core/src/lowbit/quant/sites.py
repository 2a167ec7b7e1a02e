"""One forward of a float net that tells its layers in order, and which layer or block each activation follows."""

from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.models.surgery import run_blank
from lowbit.quant.policy import function_of

PASSES = (_BatchNorm, nn.Identity, nn.Dropout, nn.Dropout2d)  # what may stand between a layer and its activation


class Sites(NamedTuple):
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
        self.sites = Sites([], {})
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
        if name not in self.sites.layers:
            self.sites.layers.append(name)
        self._set(out, name)

    def before_activation(self, name: str, args: tuple[Any, ...]) -> None:
        source = self._source(args[0]) or (self.inside[-1] if self.inside else None)
        self.acted = True
        called = source or name.rpartition(".")[0] or name
        taken = {self.sites.activations[other] for other in self.sites.activations if other != name}
        self.sites.activations.setdefault(name, name if called in taken else called)

    def _source(self, x: Tensor) -> str | None:
        """The layer that `x` comes from, unless something was added to it in place meanwhile."""
        name, version = self.sources.get(id(x), (None, 0))
        return name if x._version == version else None

    def _set(self, out: Tensor, source: str) -> None:
        self.kept.append(out)
        self.sources[id(out)] = source, out._version


def sites(model: nn.Module, input_size: tuple[int, int, int]) -> Sites:
    """Run one blank picture through the net, in evaluation mode (restored after).

    Args:
        model: any float net.
        input_size: (C, H, W) of a picture.
    """
    tracer, handles = _Tracer(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            handles.append(module.register_forward_hook(lambda m, args, out, name=name: tracer.after_layer(name, out)))
        elif function_of(module) is not None:
            handles.append(
                module.register_forward_pre_hook(lambda m, args, name=name: tracer.before_activation(name, args))
            )
        elif isinstance(module, PASSES):
            handles.append(module.register_forward_pre_hook(tracer.before))
            handles.append(module.register_forward_hook(tracer.after_pass))
    run_blank(model, input_size, handles)
    return tracer.sites
