"""Bits are tensors: all pairs of bits run in two graphs, and nothing in a step reads a value back."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.create import create_model
from lowbit.quant.bitwidths import quantize_uniform_, set_bits_, set_mode_
from lowbit.quant.calibrate import reset_ranges_
from lowbit.quant.observers import Observer, ObserverConfig
from lowbit.quant.uniform import WeightConfig
from ssql.bit_policy import derive_policy, draw_bits

PAIRS = [(w, a) for w in range(2, 9) for a in range(4, 9)]


def tiny(**config: Any) -> nn.Module:
    """A stem and one block of 8 channels."""
    net = WideCifarResNet(BasicBlock, (1,), widths=(8,), num_classes=0)
    return quantize_uniform_(net, derive_policy(net, (3, 4, 4)), **config)


def step(net: nn.Module, forward: Any, x: Tensor, w: Any, a: Any) -> Tensor:
    """A float pass that sets the ranges, the bits, a quantized pass: the method's order of calls."""
    set_mode_(reset_ranges_(net), "observe")
    z = forward(x).detach()
    set_bits_(net, w, a)
    set_mode_(net, "quantized")
    q = forward(x)
    (q - z).square().mean().backward()
    return q.detach()


def check_compilations(net: nn.Module, size: int) -> None:
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=False)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    outputs = [step(net, compiled, x, torch.tensor(w), torch.tensor(a)) for w, a in PAIRS]
    assert counter.frame_count <= 2
    assert len({tuple(o.flatten().tolist()) for o in outputs}) == len(PAIRS)
    plain = step(net, net, x, *PAIRS[-1])  # batch norm in training mode: the same batch, the same output
    assert torch.allclose(plain, outputs[-1], atol=1e-5)


def test_35_pairs_of_bits_take_two_compilations() -> None:
    check_compilations(tiny(), 4)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["cifar_resnet18", "cifar_resnet50", "resnet18"])
def test_35_pairs_of_bits_take_two_compilations_in_real_nets(arch: str) -> None:
    net = create_model(arch, num_classes=0)
    check_compilations(quantize_uniform_(net, derive_policy(net, (3, 32, 32))), 16)


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_step_reads_nothing_back(differentiable: bool) -> None:
    with FakeTensorMode():
        net = tiny(weight=WeightConfig(differentiable_scale=differentiable))
        y = step(net, net, torch.randn(4, 3, 8, 8), torch.randint(2, 9, ()), torch.randint(4, 9, ()))
    assert y.shape == (4, 8)


@pytest.mark.parametrize("name", ["minmax", "ema", "gaussian"])  # `mse` is the same code in 15 rounds
def test_an_observer_reads_nothing_back(name: str) -> None:
    with FakeTensorMode():
        observer = Observer(ObserverConfig(name))
        observer(torch.randn(4, 3), torch.randint(2, 9, ()))
    assert observer.low.shape == ()


def test_drawn_bits_are_tensors_within_the_range_and_the_same_for_a_seed() -> None:
    pairs = [draw_bits(torch.Generator().manual_seed(seed)) for seed in range(500)]
    again = draw_bits(torch.Generator().manual_seed(3))
    assert {int(w) for w, _ in pairs} == set(range(2, 9)) and {int(a) for _, a in pairs} == set(range(4, 9))
    assert {(int(w), int(a)) for w, a in pairs} == set(PAIRS)
    assert torch.equal(torch.stack(again), torch.stack(pairs[3]))
