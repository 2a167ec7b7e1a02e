"""Running statistics of batch norm: re-estimated, refused, fixed."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from timm.layers import EvoNorm2dB0, SplitBatchNorm2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from lowbit.data.batch import Batch
from lowbit.errors import InputError, Stopped
from lowbit.train.bn import SyncBatchNorm
from lowbit.train.bn_statistics import fixed_statistics, reestimate_batchnorm_


def test_reestimated_statistics_are_the_mean_over_batches() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, momentum=0.3), nn.Dropout(0.5))
    batches = [Batch((torch.randn(8, 3, 4, 4) * k + k,), torch.arange(8)) for k in (1, 2, 5)]
    net[1].eval()
    reestimate_batchnorm_(net, batches)
    means = torch.stack([b.views[0].mean((0, 2, 3)) for b in batches]).mean(0)
    variances = torch.stack([b.views[0].var((0, 2, 3)) for b in batches]).mean(0)
    torch.testing.assert_close(net[0].running_mean, means)
    torch.testing.assert_close(net[0].running_var, variances)
    assert net[0].momentum == 0.3 and net[0].training and not net[1].training


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="no batch"):
        reestimate_batchnorm_(nn.BatchNorm2d(3), [])


def test_an_exception_changes_nothing() -> None:
    def stopped() -> Iterator[Batch]:
        yield Batch((torch.randn(8, 3, 4, 4) + 2,), torch.arange(8))
        raise Stopped("now")

    net = nn.BatchNorm2d(3)
    net(torch.randn(8, 3, 4, 4))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(Stopped):
        reestimate_batchnorm_(net, stopped())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and net.momentum == 0.1


class Sliced(nn.BatchNorm2d):
    """Takes the first channels of its parameters and statistics, and keeps no count of batches."""

    def forward(self, x: Tensor) -> Tensor:
        c = x.shape[1]
        rows = (self.running_mean, self.running_var, self.weight, self.bias)
        mean, var, weight, bias = (row[:c] for row in rows if row is not None)
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum or 0.1, self.eps)


class Width(nn.Module):
    """Two batch norms of their own kind in a row, over the first channels, and one that does not run."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.unused, self.width = Sliced(4), Sliced(4), nn.BatchNorm2d(4), 4

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x[:, : self.width])))


def test_a_batch_norm_that_slices_is_reestimated() -> None:
    """To what torch's own gets at that width; other channels and norms that do not run keep what they have."""
    net, plain = Width(), nn.Sequential(nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2))
    for norm in (net.first, net.second, net.unused):
        norm.running_mean.fill_(7.0), norm.running_var.fill_(9.0)
    batches = [Batch((torch.randn(8, 4, 4, 4) * k + k,), torch.arange(8)) for k in (1, 2, 5)]
    net.width = 2
    reestimate_batchnorm_(net, batches)
    reestimate_batchnorm_(plain, [Batch((b.views[0][:, :2],), b.index) for b in batches])
    for mine, theirs in ((net.first, plain[0]), (net.second, plain[2])):
        torch.testing.assert_close(mine.running_mean[:2], theirs.running_mean)
        torch.testing.assert_close(mine.running_var[:2], theirs.running_var)
        assert mine.running_mean[2:].tolist() == [7.0, 7.0] and mine.running_var[2:].tolist() == [9.0, 9.0]
        assert mine.momentum == 0.1 and not mine._forward_pre_hooks
    assert net.unused.running_mean.tolist() == [7.0] * 4 and int(net.unused.num_batches_tracked) == 0


def test_a_batch_norm_at_two_widths_at_once_is_refused() -> None:
    net = Width()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            net.width = 5 - net.width
            return net(x)

    net.width = 1
    batches = [Batch((torch.randn(8, 4, 4, 4),), torch.arange(8))] * 2
    with pytest.raises(InputError, match="ran at two widths"):
        reestimate_batchnorm_(Both(), batches)
    assert not net.first._forward_pre_hooks


def test_a_batch_norm_of_parts_of_the_batch_is_reestimated() -> None:
    """timm's normalises parts of the batch by themselves in training; evaluation has one set of statistics."""
    net = nn.Sequential(SplitBatchNorm2d(3, num_splits=2))
    x = torch.randn(8, 3, 4, 4) + 3
    reestimate_batchnorm_(net, [Batch((x,), torch.arange(8))])
    torch.testing.assert_close(net[0].running_mean, x.mean((0, 2, 3)))
    torch.testing.assert_close(net[0].running_var, x.var((0, 2, 3)))


def test_statistics_that_are_not_batch_norms_are_refused_unless_constant() -> None:
    batch = Batch((torch.randn(8, 3, 4, 4),), torch.arange(8))
    for module in (EvoNorm2dB0(3), nn.InstanceNorm2d(3, track_running_stats=True)):
        with pytest.raises(InputError, match=rf"0 \({type(module).__name__}\) has running statistics"):
            reestimate_batchnorm_(nn.Sequential(module), [batch])
    reestimate_batchnorm_(nn.Sequential(FrozenBatchNorm2d(3), nn.InstanceNorm2d(3)), [batch])


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, SyncBatchNorm, Sliced])
def test_fixed_statistics(kind: type[nn.BatchNorm2d]) -> None:
    net = nn.Sequential(SyncBatchNorm(nn.BatchNorm2d(3)) if kind is SyncBatchNorm else kind(3))
    mean, x = net[0].running_mean.clone(), torch.randn(8, 3, 4, 4) + 3
    with fixed_statistics(net):
        inside = net(x)
    assert torch.equal(net[0].running_mean, mean) and net[0].momentum == 0.1
    assert torch.equal(inside, net(x)) and not torch.equal(net[0].running_mean, mean)
