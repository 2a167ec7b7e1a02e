"""The registered ResNets: sizes, forms of input, timm's services."""

import math

import pytest
import timm
import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.models.cifar_resnet import DEPTHS, CifarResNet
from lowbit.models.create import create_model


def slow_count(depth: int) -> int:
    """Parameters by hand: stem, 3x3 pairs with batch norm, two shortcuts, classifier."""
    n, total = (depth - 2) // 6, 3 * 16 * 9 + 32
    for i, width in enumerate((16, 32, 64)):
        first = width if i == 0 else width // 2
        total += first * width * 9 + (2 * n - 1) * width * width * 9 + 2 * n * 2 * width
        total += 0 if i == 0 else first * width + 2 * width
    return total + 64 * 10 + 10


@pytest.mark.parametrize("depth", DEPTHS)
def test_parameters_of_every_depth(depth: int) -> None:
    model = create_model(f"cifar_resnet{depth}_1x1")
    assert sum(p.numel() for p in model.parameters()) == slow_count(depth)


def test_resnet20_has_the_paper_s_parameters_and_he_start() -> None:
    torch.manual_seed(0)
    model = create_model("cifar_resnet20_1x1")
    assert sum(p.numel() for p in model.parameters()) == 272_474
    assert model.layer3[1].conv1.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)


@pytest.mark.parametrize(("size", "channels", "classes"), [(32, 3, 10), (8, 1, 7), (33, 3, 0)])
def test_any_size_channels_and_classes(size: int, channels: int, classes: int) -> None:
    model = create_model("cifar_resnet8_1x1", num_classes=classes, in_chans=channels)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, classes or 64)


def test_timm_builds_features_and_knows_the_pictures() -> None:
    features = timm.create_model("cifar_resnet8_1x1", features_only=True)(torch.zeros(1, 3, 32, 32))
    assert [f.shape[1:] for f in features] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    config = timm.data.resolve_model_data_config(create_model("cifar_resnet8_1x1"))
    assert config["input_size"] == (3, 32, 32) and config["std"] == (0.2023, 0.1994, 0.2010)


def test_wrong_names_depths_and_arguments() -> None:
    with pytest.raises(InputError, match="cifar_resnet20_1x1"):
        create_model("cifar_resnet20_1x")
    with pytest.raises(InputError, match="cannot be built"):
        create_model("cifar_resnet8_1x1", no_such_argument=1)
    with pytest.raises(ValueError, match="6n"):
        CifarResNet(10)


def test_the_classifier_can_be_reset() -> None:
    model = create_model("cifar_resnet8_1x1")
    model.reset_classifier(3)
    assert isinstance(model.get_classifier(), nn.Linear) and model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
