"""The 64-512 ResNets for small pictures: sizes, keys, timm's services."""

import pytest
import torch

from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.create import create_model


def slow_count(depths: tuple[int, ...], bottleneck: bool) -> int:
    """Parameters by hand, without the classifier; a convolution without bias has a batch norm of two."""

    def conv(channels: int, out: int, size: int) -> int:
        return channels * out * size * size + 2 * out

    total, channels = conv(3, 64, 3), 64
    for width, depth in zip((64, 128, 256, 512), depths, strict=True):
        out = 4 * width if bottleneck else width
        for block in range(depth):
            if bottleneck:
                total += conv(channels, width, 1) + conv(width, width, 3) + conv(width, out, 1)
            else:
                total += conv(channels, width, 3) + conv(width, width, 3)
            total += conv(channels, out, 1) if block == 0 and (channels != out or width > 64) else 0
            channels = out
    return total


@pytest.mark.parametrize(
    ("depth", "blocks", "bottleneck"),
    [
        (18, (2, 2, 2, 2), False),
        (34, (3, 4, 6, 3), False),
        (50, (3, 4, 6, 3), True),
        (101, (3, 4, 23, 3), True),
        (152, (3, 8, 36, 3), True),
    ],
)
def test_parameters_and_the_keys_of_timm(depth: int, blocks: tuple[int, ...], bottleneck: bool) -> None:
    with torch.device("meta"):
        net, timms = create_model(f"cifar_resnet{depth}"), create_model(f"resnet{depth}")
    features = 2048 if bottleneck else 512
    assert sum(p.numel() for p in net.parameters()) == slow_count(blocks, bottleneck) + 10 * features + 10
    assert set(net.state_dict()) == set(timms.state_dict())
    assert net.num_features == features and net.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 10), (8, 1, 7), (33, 3, 0)])
def test_any_size_channels_and_classes(size: int, channels: int, classes: int) -> None:
    net = create_model("cifar_resnet18", num_classes=classes, in_chans=channels).eval()
    x = torch.randn(2, channels, size, size)
    y = net(x)
    assert y.shape == (2, classes or 512)
    assert net.forward_features(x).shape[-1] == -(-size // 8), "three strides of 2: no max-pool, stem of stride 1"


def test_timm_s_services() -> None:
    net = create_model("cifar_resnet18", features_only=True)
    shapes = [tuple(y.shape[1:]) for y in net(torch.randn(1, 3, 32, 32))]
    assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4)]
    small = WideCifarResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=4)
    small.reset_classifier(0)
    assert small(torch.randn(2, 3, 8, 8)).shape == (2, 16) and small.get_classifier() is small.fc


def test_initialisation_is_torch_s_own() -> None:
    """The authors' nets leave the last batch norm of a branch at 1 (timm's ImageNet ResNets zero it)."""
    torch.manual_seed(0)
    net = create_model("cifar_resnet18")
    assert bool((net.layer4[1].bn2.weight == 1).all())
    limit = (1 / (512 * 9)) ** 0.5
    assert 0.99 * limit < float(net.layer4[1].conv2.weight.detach().abs().max()) <= limit
