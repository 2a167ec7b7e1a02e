"""Whole nets against recorded numbers: channels, multiply-accumulates, parameters, features at every width."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.cost import cost
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_
from lowbit.slim.layers import at_width
from lowbit.train.bn_statistics import fixed_statistics

ARCHS = {"us_mobilenetv2": "mobilenetv2_100"}  # timm's names of the authors' others are theirs without us_
SMALL = torch.zeros(1, 3, 32, 32)
NAMES = ["cifar_resnet18", "cifar_resnet50", "cifar_mobilenetv2", "resnet18", "resnet50", "mobilenetv2"]


@pytest.mark.parametrize("name", [f"us_{name}" for name in NAMES])
def test_recorded_costs(recorded: Any, name: str) -> None:
    figures = recorded.json("macs")[name]
    net = slim_(create_model(ARCHS.get(name, name.removeprefix("us_")), num_classes=0)).eval()
    order = {layer: number for number, layer in enumerate(call_order(net))}
    assert len(figures["widths"]) >= 4
    for width, wanted in figures["widths"].items():
        with at_width(net, float(width)):
            rows = cost(net, tuple(figures["input"][1:])).layers
            convs = sorted((row for row in rows if "Conv" in row.kind), key=lambda row: order[row.name])
            assert sum(row.macs for row in convs) == wanted["conv_macs"]
            assert sum(row.parameters for row in convs) == wanted["conv_params"]
            assert sum(row.parameters for row in rows if "Norm" in row.kind) == wanted["bn_affine_params"]
            plain: list[Any] = [net.get_submodule(row.name).to_plain() for row in convs]
            assert [[conv.in_channels, conv.out_channels] for conv in plain] == wanted["conv_in_out"]
            assert net(SMALL)[0].numel() == wanted["feature_dim"]


def call_order(net: nn.Module) -> list[str]:
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
        for name, module in net.named_modules()
    ]
    net(SMALL)
    for handle in handles:
        handle.remove()
    return names


@pytest.fixture(scope="module")
def resnet18(recorded: Any, filled: Callable[..., nn.Module]) -> nn.Module:
    net = create_model("cifar_resnet18", num_classes=10)
    return slim_(filled(net, recorded.fill("backbone_us_cifar_resnet18_untracked"))).double()


WATCHED = ("bn1", "layer2.0.downsample.1", "layer4.1.bn2")


def test_recorded_features(recorded: Any, resnet18: Any) -> None:
    """By batch statistics, then after one and after three passes of calibration."""
    arrays, net = recorded["features"], resnet18
    widths = sorted({key.split("/")[1] for key in arrays if key.startswith("train/")})
    assert len(widths) >= 4
    for width in widths:
        net.apply(lambda m: m.reset_running_stats() if isinstance(m, nn.BatchNorm2d) else None)
        with at_width(net, float(width[1:])), torch.no_grad(), fixed_statistics(net):
            check_features(recorded, net.train(), f"train/{width}")
        for how, passes in (("cal1", 1), ("cal3", 2)):
            with at_width(net, float(width[1:])), torch.no_grad():
                net.train()
                for batch in [*arrays["cal_pictures"].double().split(4)] * passes:
                    net(batch)
                check_features(recorded, net.eval(), f"{how}/{width}")
            for name in WATCHED:
                for key in ("running_mean", "running_var"):
                    got = getattr(net.get_submodule(name), key)
                    close(got, arrays[f"{how}/{width}/{name}.{key}"].double(), 1e-4)


def check_features(recorded: Any, net: Any, where: str) -> None:
    arrays = recorded["features"]
    pictures = recorded.pictures((4, 3, 32, 32), recorded.shift).double()
    features = net.forward_head(net.forward_features(pictures), pre_logits=True)
    close(features, arrays[f"f64/{where}/features"], 1e-8)
    close(features, arrays[f"{where}/features"].double(), 1e-4)
    close(net.fc(features), arrays[f"{where}/logits"].double(), 1e-4)


def close(got: Tensor, wanted: Tensor, atol: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=atol, atol=atol)
