"""Compilation: one graph for each number of channels that runs, whatever the width is called."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend

from lowbit.data.batch import Batch
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_
from lowbit.slim.layers import at_width
from lowbit.slim.subnetworks import subnetworks
from lowbit.slim.widths import channels_at
from lowbit.train.bn_statistics import reestimate_batchnorm_
from lowbit.train.compile import compile_, uncompiled
from us3l.sampling import Sampling

runs = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("tiny_runs.py"))))
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tiny() -> nn.Module:
    layers = [
        nn.Conv2d(3, 80, 3),
        nn.BatchNorm2d(80),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(80, 3),
    ]
    return slim_(nn.Sequential(*layers), (3, 8, 8))


def step(net: nn.Module, x: Tensor, width: float) -> Tensor:
    net.zero_grad()
    with at_width(net, width):
        y = net(x)
        y.square().sum().backward()
    return torch.cat([y.detach().flatten(), *(p.grad.flatten() for p in net.parameters())])


def check(net: nn.Module, x: Tensor, widths: list[float], distinct: int, backend: str) -> None:
    counter: Any = CompileCounterWithBackend(backend)
    torch._dynamo.reset()
    plain = [step(net, x, width) for width in widths]
    compile_(net, dynamic=False, backend=counter, fullgraph=True)
    torch.testing.assert_close([step(net, x, width) for width in widths], plain, rtol=1e-4, atol=1e-4)
    assert counter.frame_count == distinct, counter.frame_count
    for width in reversed(widths):
        step(net, x, width)
    with at_width(net, 0.5):
        reestimate_batchnorm_(net, [Batch((x[:1],), torch.arange(1))])  # evaluation makes no graphs
        with uncompiled(net):
            net.eval()(x)
    step(net.train(), x, widths[0])
    assert counter.frame_count == distinct


def test_one_graph_for_each_number_of_channels_more_than_dynamos_limit() -> None:
    net = tiny()
    widths = [one.width for one in subnetworks(net, (3, 8, 8), 0.15)]
    assert len(widths) == 9
    check(net, X, [*widths, 0.3, 0.31, 0.32], len(widths), "eager")


@pytest.mark.heavy
def test_a_step_of_three_widths_by_aot() -> None:
    check(tiny(), X, [1.0, 0.6, 0.25, 0.601], 3, "aot_eager")


@pytest.mark.heavy
def test_training_with_feature_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches have two sizes, 9 and 8: at most two graphs for each number of channels."""
    counter, compiled = CompileCounter(), nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, backend=counter, **options))
    torch._dynamo.reset()
    objective = runs.tiny("BYOL", features=True, sampling=Sampling(schedule="A")).double()
    widths = set(runs.short_run(objective, tmp_path / "run", epochs=4, compile=True))
    distinct = {tuple(channels_at(channels, width) for channels in (16, 32)) for width in widths}
    assert len(distinct) < len(widths)
    assert len(distinct) <= counter.frame_count <= 2 * len(distinct)


@pytest.mark.heavy
@pytest.mark.parametrize("arch", ["cifar_resnet18", "cifar_mobilenetv2"])
def test_real_nets(arch: str) -> None:
    check(
        slim_(create_model(arch, num_classes=10)), torch.randn(2, 3, 16, 16), [1.0, 0.6, 0.25, 0.6001], 3, "aot_eager"
    )
