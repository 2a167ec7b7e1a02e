"""Universal and switchable batch norm beside the recorded numbers: refused kinds, statistics, ranks, S-Nets."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d, SplitBatchNorm2d
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.quant.layers import to_plain_
from lowbit.slim.conversion import slim_
from lowbit.slim.layers import at_width, set_width_
from lowbit.slim.norms import SlimBatchNorm2d, SwitchableBatchNorm2d
from lowbit.train.bn_statistics import fixed_statistics, reestimate_batchnorm_

X = torch.randn(8, 32, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 + 1
LIST = (1.0, 0.75, 0.5, 0.25)  # the authors'


@pytest.mark.parametrize(
    ("norm", "why"),
    [
        (SplitBatchNorm2d(8), "SplitBatchNorm2d computes batch norm in a way of its own"),
        (nn.BatchNorm2d(8, affine=False), "no weight or no running statistics"),
        (nn.BatchNorm2d(8, track_running_stats=False), "no weight or no running statistics"),
    ],
)
@pytest.mark.parametrize("kind", [SlimBatchNorm2d, lambda norm: SwitchableBatchNorm2d(norm, LIST)])
def test_batch_norms_that_are_not_ordinary(norm: nn.BatchNorm2d, why: str, kind: Any) -> None:
    with pytest.raises(InputError, match=why):
        kind(norm)


def test_timm_s_activation_stays() -> None:
    norm = SlimBatchNorm2d(BatchNormAct2d(32, act_layer=nn.Softplus)).eval()
    with at_width(norm, 0.5):
        y, plain = norm(X[:, :16]), norm.to_plain()
        torch.testing.assert_close(y, nn.functional.softplus(X[:, :16] / (1 + 1e-5) ** 0.5))
        assert type(plain) is BatchNormAct2d and torch.equal(plain(X[:, :16]), y)
    plain = SlimBatchNorm2d(nn.BatchNorm2d(32)).train().to_plain()
    assert type(plain) is nn.BatchNorm2d and plain.training


def test_without_tracking_a_step_leaves_the_statistics_and_estimation_sets_them() -> None:
    norm = SlimBatchNorm2d(nn.BatchNorm2d(32))
    norm.track_running_stats = False
    before = deepcopy(norm.state_dict())
    with at_width(norm, 0.5):
        y = norm(X[:, :16])
        torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(16), atol=1e-5, rtol=0)
        assert all(torch.equal(value, before[key]) for key, value in norm.state_dict().items())
        reestimate_batchnorm_(norm, [Batch((X[:, :16] + k,), torch.arange(8)) for k in (0, 1)])
        torch.testing.assert_close(norm.running_mean[:16], X[:, :16].mean((0, 2, 3)) + 0.5)
        torch.testing.assert_close(norm.running_var[:16], X[:, :16].var((0, 2, 3)))
        assert not norm.running_mean[16:].any() and bool((norm.running_var[16:] == 1).all())
        with fixed_statistics(norm):
            norm.train().track_running_stats = True
            norm(X[:, :16] + 9)
    torch.testing.assert_close(norm.running_mean[:16], X[:, :16].mean((0, 2, 3)) + 0.5)


def test_each_width_has_a_batch_norm_of_its_own() -> None:
    start = nn.BatchNorm2d(32)
    nn.init.uniform_(start.weight)
    norm = SwitchableBatchNorm2d(start, LIST)
    assert list(norm.state_dict())[:2] == ["bn.0.weight", "bn.0.bias"]  # as in the authors' files
    assert [len(one.weight) for one in norm.bn] == [32, 24, 16, 8]
    set_width_(norm, 0.5)
    norm(X[:, :16]).square().sum().backward()
    moved = [one.weight.grad is not None for one in norm.bn]
    assert moved == [False, False, True, False] and [int(one.num_batches_tracked) for one in norm.bn] == [0, 0, 1, 0]
    plain = norm.eval().to_plain()
    assert type(plain) is nn.BatchNorm2d and torch.equal(plain(X[:, :16]), norm(X[:, :16]))
    assert torch.equal(plain.weight, start.weight[:16])
    with pytest.raises(InputError, match=r"width 0\.6 has no batch norm of its own: take one of 1, 0\.75, 0\.5, 0\.25"):
        set_width_(norm, 0.6)
    assert norm.width == (0.5, 0.5)


def test_a_switchable_net(tmp_path: Path) -> None:
    """It begins at the widest width of its list, and its sub-networks are ordinary nets that can be packed."""
    torch.manual_seed(0)
    net: Any = slim_(create_model("cifar_resnet8_1x1", num_classes=3), switchable=(0.25, 0.75))
    assert net.layer1[0].conv1.width == (0.75, 0.75) and net.bn1.index == 1
    x = torch.randn(8, 3, 8, 8)
    for width in (0.25, 0.75):
        with at_width(net.train(), width):
            net(x)
            y = net.eval()(x)
            torch.testing.assert_close(to_plain_(deepcopy(net))(x), y)
            save_packed(net, tmp_path / "net.lowbit", {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}})
        torch.testing.assert_close(load_packed(tmp_path / "net.lowbit")(x), y)
    with pytest.raises(InputError, match="has no batch norm of its own"):
        set_width_(net, 0.5)
    assert net.layer1[0].conv1.width == (0.75, 0.75) and net.conv1.active_out == 16
