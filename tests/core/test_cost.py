"""What ResNet-20 costs: figures that follow from its shapes alone."""

import pytest
import torch
from torch import nn

from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from lowbit.cost import cost
from lowbit.models.create import create_model

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
