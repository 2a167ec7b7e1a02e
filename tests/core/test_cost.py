"""What ResNet-20 costs: figures that follow from its shapes alone."""

from typing import Any

import pytest
import torch
from torch import nn

from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from lowbit.cost import cost
from lowbit.models.create import create_model
from lowbit.quant.layers import to_plain_

SIZE = (3, 32, 32)
MACS = 40_813_184


def resnet20(bits: int | None = None, act: int = 0) -> nn.Module:
    torch.manual_seed(0)
    net = create_model("cifar_resnet20_1x1")
    if bits is None:
        return net
    return to_bits_(quantize_bsq_activations_(net, act), bits)


def by_hand(weight: int, act: int) -> int:
    """BOPs from the shapes: pictures of 32, 16 and 8 pixels, 16, 32 and 64 channels, three blocks each."""
    floats, quantized = 32, act or 32
    total = 32**2 * 16 * 27 * weight * floats  # the stem sees the picture
    narrow, side = 16, 32
    for stage, wide in enumerate((16, 32, 64)):
        side = 32 >> stage
        for block in range(3):
            into = narrow if block == 0 else wide
            seen = floats if (stage, block) == (0, 0) else quantized  # the stem's ReLU is not quantized
            total += side**2 * wide * 9 * (into * seen + wide * quantized) * weight
            if into != wide:
                total += side**2 * wide * into * floats * quantized  # a shortcut's weight stays float
        narrow = wide
    return total + 640 * weight * floats  # the mean over pixels is float


def test_resnet20_at_8_and_4_bits() -> None:
    found = cost(resnet20(8, 4), SIZE)
    assert (found.macs, found.bops) == (MACS, 2_199_572_480)
    assert found.parameters == 272_474


@pytest.mark.parametrize(("bits", "act"), [(8, 4), (3, 4), (3, 0), (1, 2)])
def test_bops_by_hand(bits: int, act: int) -> None:
    found = cost(resnet20(bits, act), SIZE)
    assert found.macs == MACS and found.bops == by_hand(bits + 1, act)  # the sign is a bit


def test_a_float_net_has_32_bits_everywhere() -> None:
    found = cost(resnet20(), SIZE)
    assert (found.macs, found.bops, found.parameters) == (MACS, 32 * 32 * MACS, 272_474)
    values = sum(t.numel() for t in resnet20().state_dict().values() if t.is_floating_point())
    assert found.stored_bits == 32 * values and found.bytes == 4 * values


def test_macs_are_those_of_one_picture_of_any_size() -> None:
    stem = {side: cost(resnet20(), (3, side, side)).layers[0] for side in (8, 32)}
    assert [(layer.name, layer.macs) for layer in stem.values()] == [("conv1", 64 * 432), ("conv1", 1024 * 432)]


class Sliced(nn.Linear):
    """A quantized layer whose weight is the parameter that it was given."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(5, 4, bias=False)
        self.weight = weight

    def weight_codes(self) -> None:
        return None

    def bias_codes(self) -> None:
        return None

    def input_grid(self) -> None:
        return None

    def to_plain(self) -> nn.Linear:
        plain = nn.Linear(self.in_features, self.out_features, bias=False)
        plain.weight = nn.Parameter(self.weight.detach().clone())
        return plain


def test_a_shared_parameter_counts_once_and_stays_shared() -> None:
    """Twenty numbers in three layers, quantized ones and an ordinary one, and twenty of another."""
    weight = nn.Parameter(torch.randn(4, 5))
    last = nn.Linear(5, 4, bias=False)
    last.weight = weight
    layers = [Sliced(w) for w in (weight, nn.Parameter(torch.randn(4, 5)), weight)]
    net: Any = nn.Sequential(nn.Flatten(), Branches(*layers, last))
    found = cost(net, (1, 1, 5))
    assert (found.parameters, found.stored_bits, found.macs) == (40, 40 * 32, 80)
    plain: Any = to_plain_(net)
    assert sum(p.numel() for p in plain.parameters()) == 40 and plain[1][0].weight is plain[1][3].weight
    assert cost(plain, (1, 1, 5)).parameters == 40


class Branches(nn.Sequential):
    """All of the same input, added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([part(x) for part in self]).sum(0)
