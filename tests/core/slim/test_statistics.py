"""Batch-norm statistics by width: cumulative averages, kept once a sub-network, found again in a file."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_, sub_network, without_statistics_
from lowbit.slim.layers import at_width
from lowbit.slim.statistics import WidthStatistics, width_of_statistics
from lowbit.train.process import make_accelerator

X = torch.randn(3, 6, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SIZE = (3, 8, 8)


def small(switchable: tuple[float, ...] = ()) -> nn.Module:
    torch.manual_seed(0)
    return slim_(create_model("cifar_resnet8_1x1", num_classes=0), SIZE, switchable).double().eval()


def test_once_a_sub_network_and_a_cumulative_average() -> None:
    net, looked = small(), []

    def batches() -> Iterator[Batch]:
        looked.append(1)
        yield from (Batch((x,), torch.arange(6)) for x in X)

    before = {key: value.clone() for key, value in net.state_dict().items()}
    statistics, seen = WidthStatistics(net, batches, make_accelerator("no", cpu=True)), dict[float, torch.Tensor]()
    for width in (0.25, 0.5, 0.26, 1.0, 0.51, 0.5):  # of 16, 32 and 64 channels 0.26 gives as many as 0.25
        with statistics.at(width), torch.no_grad():
            seen[width] = net(X[0])
            plain: Any = sub_network(net, width)
            assert torch.equal(plain(X[0]), seen[width])
            first = torch.stack([plain.conv1(x) for x in X])
            torch.testing.assert_close(plain.bn1.running_mean, first.mean((0, 1, 3, 4)), rtol=1e-12, atol=1e-12)
            variances = [x.var((0, 2, 3)) for x in first]
            torch.testing.assert_close(plain.bn1.running_var, torch.stack(variances).mean(0), rtol=1e-12, atol=1e-12)
    assert len(looked) == len(statistics.kept) == 3 and seen[0.25].shape == (6, 16)
    assert torch.equal(seen[0.25], seen[0.26]) and torch.equal(seen[0.5], seen[0.51])
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_width_is_found_by_the_channels_that_have_moved() -> None:
    net = small()
    assert width_of_statistics(net) is None and width_of_statistics(small((1.0, 0.5))) is None
    batch = [Batch((X[0],), torch.arange(6))]
    for width in (0.25, 0.75, 1.0):
        with WidthStatistics(net, lambda: batch, make_accelerator("no", cpu=True)).at(width):
            found = width_of_statistics(net)
            assert found is not None
            with at_width(net, width):
                wanted = sub_network(net, width).state_dict()
            assert {k: v.shape for k, v in wanted.items()} == {
                k: v.shape for k, v in sub_network(net, found).state_dict().items()
            }
    norm: Any = net.get_submodule("bn1")
    norm.running_mean[0] = 1.0  # of one channel alone, in one layer alone
    with pytest.raises(InputError, match="of no width"):
        width_of_statistics(net)


def test_without_statistics_the_batch_is_taken() -> None:
    net = without_statistics_(sub_network(small(), 0.5)).eval()
    assert not any(isinstance(buffer, torch.Tensor) for buffer in net.buffers())
    assert not torch.allclose(net(X[0])[:3], net(X[0][:3]))
    reference = sub_network(small(), 0.5).train()
    torch.testing.assert_close(net(X[0]), reference(X[0]))
