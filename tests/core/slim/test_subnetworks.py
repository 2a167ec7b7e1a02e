"""The list of distinct sub-networks, their costs, the best under a limit."""

import time

import pytest
from torch import nn

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_, slim_inputs_
from lowbit.slim.layers import at_width, slimmable_layers
from lowbit.slim.subnetworks import Subnetwork, best_under, subnetworks
from lowbit.slim.widths import channels_at


def tiny(widths: tuple[int, ...] = (24, 40)) -> nn.Module:
    return slim_(WideCifarResNet(BasicBlock, (1,) * len(widths), widths=widths, num_classes=5), (3, 8, 8))


@pytest.mark.parametrize(("name", "count"), [("cifar_resnet18", 90), ("resnet50", 378)])
def test_the_counts_of_the_papers_nets_within_a_second(name: str, count: int) -> None:
    net = slim_(create_model(name, num_classes=0))
    started = time.process_time()
    found = subnetworks(net, (3, 64, 64))
    assert time.process_time() - started < 1
    assert len(found) == count and found[0].width == 0.25 and found[-1].width == 1.0
    assert [one.width for one in found] == sorted({one.width for one in found})
    assert len({(one.macs, one.parameters) for one in found}) == count


@pytest.mark.parametrize("name", ["tiny", "cifar_mobilenetv2"])
def test_each_is_there_once_and_costs_what_it_costs(name: str) -> None:
    net = tiny() if name == "tiny" else slim_(create_model(name))
    found = subnetworks(net, (3, 8, 8), 0.1, 0.97)
    sides = {
        side
        for layer in slimmable_layers(net).values()
        for side in zip(layer.full, layer.ratios, strict=True)
        if side[1]
    }

    def numbers(width: float) -> tuple[int, ...]:
        return tuple(channels_at(channels, width, ratio) for channels, ratio in sides)

    fine = dict.fromkeys(numbers(0.1 + 0.87 * i / 5000) for i in range(5001))
    assert [numbers(one.width) for one in found] == list(fine)
    for one in found[:: len(found) // 4]:
        with at_width(net, one.width):
            counted = cost(net, (3, 8, 8))
        assert (counted.macs, counted.parameters) == (one.macs, one.parameters)


def test_the_best_under_a_limit() -> None:
    found = subnetworks(tiny(), (3, 8, 8))
    for one in found:
        assert best_under(one.macs, found) == one == best_under(one.macs + 1, found)
    assert best_under(10**12, found) == found[-1]
    with pytest.raises(InputError, match="no sub-network has 5 multiply-accumulates or fewer; the smallest has"):
        best_under(5, found)
    assert isinstance(found[0], Subnetwork)


def test_a_net_of_listed_widths_has_these() -> None:
    net = WideCifarResNet(BasicBlock, (1,), widths=(64,), num_classes=5)
    net = slim_(net, (3, 8, 8), switchable=(1.0, 0.75, 0.5, 0.25))
    found = subnetworks(net, (3, 8, 8), 0.3)
    assert [one.width for one in found] == [0.5, 0.75, 1.0]
    for one in found:
        with at_width(net, one.width):
            counted = cost(net, (3, 8, 8))
        assert (counted.macs, counted.parameters) == (one.macs, one.parameters)


def test_a_vision_transformer_of_slimmed_inputs() -> None:
    net = slim_inputs_(create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=1))
    found = subnetworks(net, (3, 32, 32))
    assert found[0].width == 0.25 and found[0].macs < found[-1].macs
    for one in found[::20]:
        with at_width(net, one.width):
            counted = cost(net, (3, 32, 32))
        assert (counted.macs, counted.parameters) == (one.macs, one.parameters)


def test_a_range_that_holds_no_width() -> None:
    with pytest.raises(InputError, match=r"no width lies between 0\.5 and 0\.4"):
        subnetworks(tiny(), (3, 8, 8), 0.5, 0.4)
