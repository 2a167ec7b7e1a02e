"""Binary weights and activations, as quantizers of the one convolution, and the conversion of any net to them.

Liu, Shen, Savvides, Cheng, "ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions",
ECCV 2020 (arXiv 2003.03488), Sec. 4; trained in steps as in Shen, Liu, Qin, Huang, Cheng, Savvides, "S2-BNN: Bridging
the Gap Between Self-Supervised Real and 1-bit Neural Networks via Guided Distribution Calibration", CVPR 2021 (arXiv
2102.08946). Activations: sign(x). Weights: alpha sign(W), alpha = mean |W| of each output channel.

Deviations from the authors' programs: sign(0) = +1 (theirs is 0, a third value that one bit cannot hold); their
x * x and masks give NaN from |x| = 256 in half precision, here no finite or infinite x does. Their fresh binary weights
are all positive, so that every output channel starts alike; ours keep the layer's own, symmetric initialisation.

Zero padding follows the sign: taps beyond the border see 0, which is no value of the grid.
"""

from typing import Any

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import of_kind, replace_
from lowbit.quant.conv import QuantConv2d
from lowbit.quant.layers import Codes, Grid

STEPS = {0: "real-valued", 1: "binary activations", 2: "binary activations and weights"}
RECTIFIERS = (nn.ReLU, nn.ReLU6)  # behind which every sign is +1
MOST_SIDE = 512  # of a picture that is shown to a net for its signs: a layer's output at 4096 pixels takes gigabytes


class _Sign(torch.autograd.Function):
    """x -> +-1; dx = g max(0, 2 - 2|x|), the derivative of a piecewise polynomial that is close to the sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x >= 0).to(x.dtype).mul_(2).sub_(1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return x.abs().mul_(-2).add_(2).clamp_(min=0).mul_(grads[0])


class _ScaledSign(torch.autograd.Function):
    """W -> +-alpha; dW = g where |W| < 1, else 0: alpha is a constant, and no factor of the gradient."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, alpha: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.where(weight >= 0, alpha, -alpha)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weight,) = ctx.saved_tensors
        return grads[0] * (weight.abs() < 1), None


def mean_magnitude(weight: Tensor) -> Tensor:
    """Alpha: mean |W| of each output channel (axis 0), shaped to broadcast against `weight`; without gradient."""
    return weight.detach().abs().mean(tuple(range(1, weight.dim())), keepdim=True)


class BinaryWeight(nn.Module):
    """The weight quantizer alpha sign(W) (`lowbit.quant.conv`)."""

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with, (out, ...)."""
        binary: Tensor = _ScaledSign.apply(weight, mean_magnitude(weight))
        return binary

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """Codes 0 and 1 around the zero point 1/2, with the scale 2 alpha."""
        scale = 2 * mean_magnitude(weight)
        return Codes((weight >= 0).int(), Grid(scale, torch.tensor(0.5, dtype=scale.dtype), 1, signed=False))


class BinaryInput(nn.Module):
    """The input quantizer sign(x): an activation quantizer without a range (`lowbit.quant.layers`)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape and float type -> +-1 of the same."""
        binary: Tensor = _Sign.apply(x)
        return binary

    def grid(self) -> Grid:
        """Codes 0 and 1 for -1 and +1."""
        return Grid(torch.tensor(2.0), torch.tensor(0.5), 1, signed=False)

    def has_range(self) -> bool:
        """Never."""
        return False

    def calibrated(self) -> bool:
        """Always."""
        return True

    def begin_calibration_(self) -> None:
        """Nothing to watch."""

    def end_calibration_(self, keep: bool) -> None:
        """Nothing to set."""


def binary_convolutions(model: nn.Module) -> list[str]:
    """Names of the convolutions to binarize: all but the first (the stem) and those that the net keeps real.

    Args:
        model: any net; a module may name children that stay real in its attribute `stays_real`.

    Raises:
        InputError: there is none.
    """
    real = [
        f"{name}.{child}" if name else child
        for name, module in model.named_modules()
        for child in getattr(module, "stays_real", ())
    ]
    names = list(of_kind(model, nn.Conv2d))[1:]
    left = [name for name in names if not any(f"{name}.".startswith(f"{r}.") for r in real)]
    if not left:
        raise InputError(f"{type(model).__name__} has no convolution to binarize beside its stem: use another net")
    return left


def binarize_(model: nn.Module, step: int) -> nn.Module:
    """Set what of a net is binary, in place; its weights stay, with their keys, in whatever order steps follow.

    Architecture and step say all of a binary net, so files need to state no more.

    The first time that a net leaves step 0, its ReLUs (and ReLU6s) become PReLUs of one slope each.

    Args:
        model: any net of ordinary convolutions; linear layers stay real.
        step: a key of STEPS: 0 real-valued, 1 binary activations, 2 binary weights, too.

    Returns:
        The model.

    Raises:
        InputError: another step, no convolution to binarize, or one that is none of the ordinary (see
            `lowbit.quant.conv.check_plain`) or is quantized otherwise.
    """
    if type(step) is not int or step not in STEPS:
        meanings = ", ".join(f"{number} ({meaning})" for number, meaning in STEPS.items())
        raise InputError(f"step {step!r:.80}: one of {meanings} is allowed")
    if step == 0 and step_of(model) == 0:
        return model
    names, new = binary_convolutions(model), dict[str, nn.Module]()
    for name in names:
        layer: Any = model.get_submodule(name)
        try:
            if type(layer) is not QuantConv2d:
                new[name] = QuantConv2d(layer)
            elif not _is_binary(layer):
                raise InputError("it is quantized otherwise: start from the float net")
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from error
    reference = next(model.parameters())
    for name, module in model.named_modules():
        if type(module) in RECTIFIERS:
            new[name] = nn.PReLU(device=reference.device, dtype=reference.dtype)
    replace_(model, new)
    for name in names:
        layer = model.get_submodule(name)
        layer.weight_quantizer = BinaryWeight() if step == 2 else None
        layer.input_quantizer = BinaryInput() if step else None
    return model


def step_of(model: nn.Module) -> int:
    """The key of STEPS that a net is at."""
    layers = [m for m in model.modules() if isinstance(m, QuantConv2d) and isinstance(m.input_quantizer, BinaryInput)]
    if not layers:
        return 0
    return 2 if all(isinstance(layer.weight_quantizer, BinaryWeight) for layer in layers) else 1


@torch.no_grad()
def blind_layers(model: nn.Module, input_size: tuple[int, int, int]) -> list[str]:
    """Names of the binary layers to whose inputs the sign says nothing: none is negative, as behind `F.relu`.

    Modules that rectify are replaced by `binarize_`, functions cannot be.

    Args:
        model: any net.
        input_size: (C, H, W) of the random picture that it is shown in evaluation mode, of large ones a corner.
    """
    modes, reference = {module: module.training for module in model.modules()}, next(model.parameters())
    lowest = dict[str, bool]()

    def watched(name: str) -> Any:
        return lambda module, args: lowest.update({name: bool(args[0].min() >= 0)})

    layers = {name: m for name, m in of_kind(model, QuantConv2d).items() if isinstance(m.input_quantizer, BinaryInput)}
    if not layers:
        return []
    handles = [layer.register_forward_pre_hook(watched(name)) for name, layer in layers.items()]
    channels, *sides = input_size
    sides = [min(side, MOST_SIDE) for side in sides]
    picture = torch.randn(1, channels, *sides, generator=torch.Generator().manual_seed(0))
    model.eval()(picture.to(reference.device, reference.dtype))
    for handle in handles:
        handle.remove()
    for module, mode in modes.items():
        module.training = mode
    return [name for name, blind in lowest.items() if blind]


def _is_binary(layer: QuantConv2d) -> bool:
    weight: Any = layer.weight_quantizer
    return isinstance(weight, BinaryWeight | None) and isinstance(layer.input_quantizer, BinaryInput | None)
