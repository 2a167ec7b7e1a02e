"""Bi-Real and XNOR ResNet-18, and the wide ResNet-50: parameters, keys, shortcuts, steps."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.cost import cost
from lowbit.models.create import create_model
from lowbit.models.layouts import resnet_of
from lowbit.models.xnor_resnet import Block, XnorResNet
from lowbit.quant.binary import binarize_, binary_convolutions
from lowbit.quant.conv import QuantConv2d

ARCHS = ["bireal_resnet18", "xnor_resnet18"]
STAGES = [(64, 64), (64, 128), (128, 256), (256, 512)]
BINARY = sum(9 * (channels * out + 3 * out * out) for channels, out in STAGES)


@pytest.mark.parametrize("arch", ARCHS)
def test_parameters_by_hand(arch: str) -> None:
    with torch.device("meta"):
        net = binarize_(create_model(arch), 2)
    shortcuts = sum(channels * out + 2 * out for channels, out in STAGES[1:])
    norms = 2 * 64 + sum(4 * 2 * out for _, out in STAGES)
    found = cost(net, (3, 224, 224))
    assert found.parameters == BINARY + shortcuts + norms + 3 * 64 * 49 + 513_000 == 11_689_512
    assert found.binary_parameters == BINARY == 10_985_472
    macs = sum(9 * (channels * out + 3 * out * out) * (56 >> n) ** 2 for n, (channels, out) in enumerate(STAGES))
    assert found.binary_macs == macs
    real = 3 * 64 * 49 * 112**2 + sum(c * out * (28 >> n) ** 2 for n, (c, out) in enumerate(STAGES[1:])) + 512_000
    assert found.real_macs == real


def slow(net: Any, x: Tensor, around_each: bool, step: int) -> Tensor:
    """The net by its description, in evaluation mode."""

    def convolution(conv: Any, x: Tensor) -> Tensor:
        w, x = conv.weight, x.clamp(-1, 1)
        if step == 2:
            w = torch.where(w >= 0, 1.0, -1.0) * w.abs().mean((1, 2, 3), keepdim=True)
        return F.conv2d(torch.where(x >= 0, 1.0, -1.0) if step else x, w, None, conv.stride, 1)

    x = F.max_pool2d(net.bn1(F.conv2d(x, net.conv1.weight, None, 2, 3)), 3, 2, 1)
    for stage in (net.layer1, net.layer2):
        for block in stage:
            shortcut = x
            if block.downsample is not None:
                shortcut = block.downsample[2](F.conv2d(F.avg_pool2d(x, 2), block.downsample[1].weight))
            y = block.bn1(convolution(block.conv1, x))
            y = y + shortcut if around_each else y
            x = block.bn2(convolution(block.conv2, y)) + (y if around_each else shortcut)
    return net.fc(x.mean((2, 3)))


@pytest.mark.parametrize("step", [0, 1, 2])
@pytest.mark.parametrize("around_each", [True, False])
@torch.no_grad()
def test_against_a_slow_net(around_each: bool, step: int) -> None:
    torch.manual_seed(0)
    net, x = XnorResNet(around_each, 5, widths=(4, 8)), torch.randn(2, 3, 32, 32)
    net(x)  # running statistics of its own
    binarize_(net.eval(), step)
    assert binary_convolutions(net) == [f"layer{i}.{j}.conv{k}" for i in (1, 2) for j in (0, 1) for k in (1, 2)]
    assert torch.allclose(net(x), slow(net, x, around_each, step), atol=1e-5)


def test_under_the_sign_the_clip_changes_no_gradient() -> None:
    torch.manual_seed(0)
    block: Any = binarize_(nn.Sequential(nn.Conv2d(1, 1, 1), Block(4, 8, 2, True)), 2)[1]  # type: ignore[index]
    assert not isinstance(block.downsample[1], QuantConv2d)
    x, grads = torch.randn(2, 4, 6, 6), []
    for act in (nn.Hardtanh(), nn.Identity()):
        block.act1, leaf = act, x.clone().requires_grad_()
        block(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("arch", ARCHS)
def test_any_size_and_timm_s_services(arch: str) -> None:
    with torch.device("meta"):
        net = create_model(arch, num_classes=0, in_chans=1)
        assert net(torch.randn(2, 1, 112, 75)).shape == (2, 512)  # sides that are odd on the way
        features = create_model(arch, features_only=True)
        shapes = [tuple(y.shape[1:]) for y in features(torch.randn(1, 3, 64, 64))]
        assert shapes == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]
        keys, timms = set(create_model(arch).state_dict()), set(create_model("resnet18").state_dict())
        renamed = {key.replace("sample.1.", "sample.2.").replace("sample.0.", "sample.1.") for key in timms}
        assert keys == renamed


def test_the_wide_resnet50_is_timm_s_four_times_as_wide() -> None:
    with torch.device("meta"):
        net, timms = create_model("resnet50_w4"), create_model("resnet50").state_dict()
        assert net.forward_features(torch.randn(1, 3, 64, 64)).shape == (1, 8192, 2, 2)  # type: ignore[operator]
    wide = {}
    for key, tensor in timms.items():
        shape = list(tensor.shape)
        shape[:1] = [n * (1 if key.startswith("fc") else 4) for n in shape[:1]]
        shape[1:2] = [n * (1 if key == "conv1.weight" else 4) for n in shape[1:2]]
        wide[key] = tuple(shape)
    assert {key: tuple(tensor.shape) for key, tensor in net.state_dict().items()} == wide and net.num_features == 8192
    backbone = sum(p.numel() for key, p in net.named_parameters() if not key.startswith("fc"))
    norms, stem = 53_120, 9_408  # of ResNet-50's 23,508,032 parameters without the classifier
    assert backbone == 16 * (23_508_032 - norms - stem) + 4 * (norms + stem) == 375_378_176
    assert resnet_of(net.state_dict()) == "resnet50_w4" and resnet_of(timms) == "resnet50"
