"""Batch norm over ranks, and its statistics estimated anew."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from lowbit.data.batch import Batch
from lowbit.train.bn import SyncBatchNorm, reestimate_batchnorm_, sync_batchnorm_


def test_two_ranks_with_unequal_batches_equal_one_process(toys: Any, tmp_path: Path) -> None:
    toys.start(tmp_path / "bn", call="bn", world=2).wait(0, 0)


@pytest.mark.parametrize("name", ["resnet18", "resnetv2_50", "efficientnet_b0"])
def test_any_timm_net_computes_the_same_on_one_process(name: str) -> None:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=7)
    keys, parameters, x = list(net.state_dict()), list(net.parameters()), torch.randn(2, 3, 64, 64)
    before = net.eval()(x)
    assert sync_batchnorm_(net) is net
    assert torch.equal(net(x), before)
    assert list(net.state_dict()) == keys
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, SyncBatchNorm) for m in norms)


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
