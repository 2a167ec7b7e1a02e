"""Batch norm over ranks."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import SplitBatchNorm2d
from torch import nn

from lowbit.errors import InputError
from lowbit.train.bn import SyncBatchNorm, sync_batchnorm_


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


def test_a_batch_norm_with_a_forward_of_its_own_is_not_synchronised() -> None:
    with pytest.raises(InputError, match="SplitBatchNorm2d computes batch norm in a way of its own") as caught:
        sync_batchnorm_(nn.Sequential(SplitBatchNorm2d(3)))
    assert "\n" not in str(caught.value)

    class Own(SyncBatchNorm):
        pass

    own = Own(nn.BatchNorm2d(3))
    net = sync_batchnorm_(nn.Sequential(own, nn.SyncBatchNorm(3)))
    assert net[0] is own and type(net[1]) is SyncBatchNorm
