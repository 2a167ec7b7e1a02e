"""MobileNet-V2 for small pictures: size, keys, strides, timm's services."""

import pytest
import torch

from lowbit.models.create import create_model


def test_parameters_and_the_keys_of_timm() -> None:
    with torch.device("meta"):
        net, timms = create_model("cifar_mobilenetv2", num_classes=7), create_model("mobilenetv2_100", num_classes=7)
    assert sum(p.numel() for p in net.parameters()) == 2_223_872 + 7 * 1281
    assert {k: v.shape for k, v in net.state_dict().items()} == {k: v.shape for k, v in timms.state_dict().items()}


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 10), (16, 1, 0)])
def test_any_size_channels_and_classes(size: int, channels: int, classes: int) -> None:
    net = create_model("cifar_mobilenetv2", num_classes=classes, in_chans=channels).eval()
    x = torch.randn(2, channels, size, size)
    assert net(x).shape == (2, classes or 1280)
    assert net.forward_features(x).shape == (2, 1280, size // 8, size // 8)


def test_timm_s_services() -> None:
    net = create_model("cifar_mobilenetv2", features_only=True)
    x = torch.randn(1, 3, 32, 32)
    shapes = [tuple(y.shape[1:]) for y in net(x)]
    assert shapes == [(24, 32, 32), (32, 16, 16), (96, 8, 8), (320, 4, 4)]
    assert [32 // reduction for reduction in net.feature_info.reduction()] == [32, 16, 8, 4]
    with torch.device("meta"):
        assert create_model("cifar_mobilenetv2").num_classes == 10
