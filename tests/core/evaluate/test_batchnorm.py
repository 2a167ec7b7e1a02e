"""Batch norm re-estimated: in the net's dtype, under autocast of the forward alone, and undone."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.evaluate.batchnorm import reestimated_batchnorm
from lowbit.train.process import make_accelerator

PICTURES = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def batches(said: list[bool]) -> Iterator[Batch]:
    said.append(torch.is_autocast_enabled("cpu"))
    yield Batch((PICTURES,), torch.arange(4))


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float64), ("bf16", torch.float32)])
def test_a_net_is_run_as_evaluation_runs_it(precision: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)).to(dtype)
    seen: list[Tensor] = []
    net[0].register_forward_hook(lambda module, args, out: seen.append(out))
    before = {key: value.clone() for key, value in net.state_dict().items()}
    prepared: list[bool] = []
    with reestimated_batchnorm(net, batches(prepared), make_accelerator(precision, cpu=True)):
        assert prepared == [False]
        assert seen[0].dtype == (torch.bfloat16 if precision == "bf16" else dtype)
        torch.testing.assert_close(net[1].running_mean, seen[0].to(dtype).mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and net.training
