"""BSQ's choice of activations: which are quantized, and by which function.

The authors quantize the two ReLUs of every residual block, with ReLU6 above 3 bits and PACT at 3 bits and below (also
at 0, where nothing is rounded but PACT's clip stays). Nets that they never had keep their own activation functions,
with an optional clip of ReLUs; every one but the stem's is quantized, those with negative values over a signed range.
"""

from collections.abc import Sequence

from torch import nn

from bsq.options import FLOAT_BITS, MAX_BITS
from lowbit.errors import InputError
from lowbit.models.cifar_resnet import CifarResNet
from lowbit.quant.activations import NOT_NEGATIVE, ActivationConfig
from lowbit.quant.places import activation_points, quantize_activations_, quantized_activations

CLIPS = {"6": "relu6", "none": "relu", "pact": "pact"}  # the function that a quantized ReLU then has


def quantize_bsq_activations_(
    model: nn.Module, bits: int, *, clip: str | None = None, range: str = "batch",
    include: Sequence[str] | None = None, exclude: Sequence[str] = (),
) -> nn.Module:  # fmt: skip
    """Replace a net's activations by BSQ's quantizers, in place.

    Args:
        model: the registered ResNets or any timm classifier.
        bits: activation bits (`--act`); 0 rounds nothing, nor do 17 to 32, the authors' way to write floats.
        clip: "6", "none" or "pact"; None: the authors' rule for the registered ResNets, else the module's own function.
        range: "batch" (the authors') or "running" (calibrate before evaluating).
        include: patterns of activation modules; None: the authors' two a block, else all but the stem's.
        exclude: patterns of those that stay float.

    Raises:
        InputError: a value out of range, a pattern that matches nothing, or nothing to quantize.
    """
    if clip is not None and clip not in CLIPS:
        raise InputError(f"activation clip {clip!r}: one of {', '.join(CLIPS)} is allowed")
    ours = isinstance(model, CifarResNet)
    if clip is None and ours:
        clip = "6" if bits > 3 else "pact"
    if include is None and ours:
        include = ("*.relu1", "*.relu2")
    rounded = 0 if MAX_BITS < bits <= FLOAT_BITS else bits

    def config(function: str) -> ActivationConfig:
        clipped = clip is not None and function in NOT_NEGATIVE
        return ActivationConfig(rounded, CLIPS[str(clip)] if clipped else function, range)

    config("relu")  # a wrong value is refused before the net changes
    points = activation_points(model, include, exclude)
    if rounded and not points:
        of = quantized_activations(model)[1]
        raise InputError(f"--act {bits}: none of its {of} activation functions is quantized: give --act 0")
    return quantize_activations_(model, points, config)
