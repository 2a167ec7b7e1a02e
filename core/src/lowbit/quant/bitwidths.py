"""A net under uniform quantization whose bit-widths change from step to step: wrap it, set its mode and its bits.

quantize_uniform_(net, pins)    # which layers and activations
with in_mode(net, "observe"):
    net(x)                      # float; the ranges of activations are watched
set_bits_(net, 4, 4)            # or two tensors, new ones each step
with in_mode(net, "quantized"):
    net(x)
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import of_kind, replace_
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.layers import Codes, Grid
from lowbit.quant.observers import ObservedActivation, ObserverConfig
from lowbit.quant.places import function_of
from lowbit.quant.uniform import WeightConfig, check_bits, integer_codes, quantize_weight, weight_grid

MODES = ("float", "observe", "quantized")  # of a forward: float; float, and ranges are watched; quantized


class UniformWeight(nn.Module):
    """The uniform quantizer of a layer's weight (`lowbit.quant.conv`).

    Attributes:
        w_bits: buffer, 0-dimensional; 0: float.
        pin: bits that replace whatever is drawn; None: what is drawn.
        mode: one of MODES; weights are quantized in `quantized` alone.
    """

    w_bits: Tensor

    def __init__(self, config: WeightConfig, pin: int | None = None) -> None:
        super().__init__()
        self.config, self.pin, self.mode = config, pin, "float"
        self.register_buffer("w_bits", torch.tensor(pin or 0), persistent=False)
        self._former: str | None = None  # the mode, while calibrating

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with, (out, ...)."""
        if self.mode != "quantized":
            return weight
        return quantize_weight(weight, self.w_bits, self.config)

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes | None:
        """The codes of what `forward` returns; None where that is float."""
        bits = int(self.w_bits) if self.mode == "quantized" else 0
        if not bits:
            return None
        grid = weight_grid(weight, self.w_bits, self.config)
        return Codes(integer_codes(weight, grid), Grid(grid.scale, grid.zero_point, bits, signed=True))

    def begin_calibration_(self) -> None:
        """Float weights while ranges are observed."""
        self._former, self.mode = self.mode, "observe"

    def end_calibration_(self, keep: bool) -> None:
        """The former mode."""
        if self._former is not None:
            self.mode, self._former = self._former, None

    def extra_repr(self) -> str:
        """Pin and grid, for print(model)."""
        return f"pin={self.pin}, grid={self.config.grid}, per_channel={self.config.per_channel}"


class Pins(Protocol):
    """The places to quantize by name, each with the bits that it keeps whatever is set; None: what is set; 0: float."""

    @property
    def weights(self) -> Mapping[str, int | None]:
        """Convolutions and linear layers."""
        ...

    @property
    def activations(self) -> Mapping[str, int | None]:
        """Activation modules."""
        ...


def quantize_uniform_(
    model: nn.Module,
    pins: Pins,
    weight: WeightConfig | None = None,
    observer: ObserverConfig | None = None,
) -> nn.Module:
    """Put quantized layers and activations in the places that `pins` names, in place, in mode `float`.

    Parameters stay the same objects and keep their keys; each quantized activation adds `<name>.observer.{low, high,
    seen}` to the state dict.

    Args:
        model: float.
        pins: which places; those pinned to 0 bits are left as they are.
        weight: how weights are quantized.
        observer: how ranges of activations are watched.

    Returns:
        The model (the new layer, if the model was a single layer).

    Raises:
        InputError: a layer whose weight cannot be followed.
    """
    weight, observer = weight or WeightConfig(), observer or ObserverConfig()
    new: dict[str, nn.Module] = {}
    for name, pin in pins.weights.items():
        layer = model.get_submodule(name)
        try:
            if pin != 0 and isinstance(layer, nn.Conv2d):
                new[name] = QuantConv2d(layer, UniformWeight(weight, pin))
            elif pin != 0 and isinstance(layer, nn.Linear):
                new[name] = QuantLinear(layer, UniformWeight(weight, pin))
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
    for name, pin in pins.activations.items():
        function = function_of(model.get_submodule(name))
        if pin != 0 and function is not None:
            new[name] = ObservedActivation(function, observer, pin)
    _move_like_(model, new)
    return replace_(model, new)


def _move_like_(model: nn.Module, new: dict[str, nn.Module]) -> None:
    """Put the quantizers' buffers where the model is; in double if it is (they stay single for half precision)."""
    reference = next(model.parameters(), None)
    if reference is None:
        return
    dtype = torch.float64 if reference.dtype == torch.float64 else torch.float32
    for parent in new.values():
        for module in parent.modules():
            if isinstance(module, UniformWeight | ObservedActivation):
                module.to(reference.device, dtype)


def weight_quantizers(model: nn.Module) -> list[UniformWeight]:
    """The weight quantizers, in the order of the modules."""
    return list(of_kind(model, UniformWeight).values())


def activations(model: nn.Module) -> dict[str, ObservedActivation]:
    """The quantized activations by name."""
    return of_kind(model, ObservedActivation)


def set_mode_(model: nn.Module, mode: str) -> nn.Module:
    """Set what the next forwards do: one of MODES; returns the model."""
    if mode not in MODES:
        raise ValueError(f"mode {mode!r}: one of {', '.join(MODES)} is allowed")
    for module in model.modules():
        if isinstance(module, UniformWeight | ObservedActivation):
            module.mode = mode
    return model


@contextmanager
def in_mode(model: nn.Module, mode: str) -> Iterator[nn.Module]:
    """`set_mode_` for a block of code; the former mode (of the first quantized module) comes back after it."""
    kinds = UniformWeight | ObservedActivation
    former = next((m.mode for m in model.modules() if isinstance(m, kinds)), "float")
    try:
        yield set_mode_(model, mode)
    finally:
        set_mode_(model, former)


@torch.no_grad()
def set_bits_(model: nn.Module, w: int | Tensor, a: int | Tensor, keep_pins: bool = False) -> nn.Module:
    """Set the bits of all weights and of all activations, except where they are pinned; returns the model.

    Args:
        model: wrapped by `quantize_uniform_`.
        w: bits of weights; 0: all of them float. A tensor (0-dimensional) is not read back, nor checked.
        a: bits of activations, likewise.
        keep_pins: with 0 bits pinned places keep theirs: full precision then leaves, for instance, the first
            convolution at 8/8.

    Raises:
        InputError: a number that is neither 0 nor 2 to 16.
    """
    weights = [(q.w_bits, q.pin) for q in weight_quantizers(model)]
    acts = [(q.a_bits, q.pin) for q in activations(model).values()]
    for bits, places, what in ((w, weights, "weights"), (a, acts, "activations")):
        if not isinstance(bits, Tensor):
            bits = torch.tensor(check_bits(bits, what))
        if not places:
            continue
        buffers = [buffer for buffer, _ in places]
        drawn = bits.to(buffers[0].device, buffers[0].dtype)
        values = {
            pin: drawn if pin is None else torch.full_like(drawn, pin) if keep_pins else drawn.clamp(max=1) * pin
            for pin in {pin for _, pin in places}
        }
        torch._foreach_copy_(buffers, [values[pin] for _, pin in places])
    return model
