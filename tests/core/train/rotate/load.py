"""Checkpoints to students: timm nets whose convolutions, but for the stem, have two bits, and activations four."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lowbit.checkpoint.check import load_state_
from lowbit.checkpoint.header import Header, read_header
from lowbit.models.create import create_model
from lowbit.models.surgery import of_kind, replace_
from lowbit.quant.activations import ActivationConfig
from lowbit.quant.conv import QuantConv2d
from lowbit.quant.places import activation_points, quantize_activations_
from rotate.objective import TwoBits

FORMAT = 1


def student(arch: str) -> nn.Module:
    """A net under quantizers, (B, 3, H, W) -> (B, 4)."""
    net = create_model(arch, num_classes=4)
    quantize_activations_(net, activation_points(net), lambda function: ActivationConfig(4, function, "running"))
    _, *layers = of_kind(net, nn.Conv2d).items()
    return replace_(net, {name: QuantConv2d(layer, TwoBits()) for name, layer in layers})


def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
    """Entry point of `lowbit.methods`: the student; None if the checkpoint is another package's."""
    header = read_header(checkpoint, "rotate", FORMAT, Header)
    return None if header is None else load_state_(student(header.arch), header.state_dict)
