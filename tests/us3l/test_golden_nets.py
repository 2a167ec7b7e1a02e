"""Whole nets against recorded numbers: channels, multiply-accumulates, parameters, features at every width."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.cost import cost
from lowbit.models.create import create_model
from us3l.layers import at_width
from us3l.slim import slim_

ARCHS = {"us_mobilenetv2": "mobilenetv2_100"}  # timm's names of the authors' others are theirs without us_


@pytest.mark.parametrize(
    "name", ["us_cifar_resnet18", "us_cifar_resnet50", "us_resnet18", "us_resnet50", "us_mobilenetv2"]
)
def test_recorded_costs(recorded: Any, name: str) -> None:
    figures = recorded.json("macs")[name]
    net = slim_(create_model(ARCHS.get(name, name.removeprefix("us_")), num_classes=0)).eval()
    order = {layer: number for number, layer in enumerate(call_order(net, figures["input"]))}
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
            assert net(torch.zeros(figures["input"]))[0].numel() == wanted["feature_dim"]


def call_order(net: nn.Module, shape: list[int]) -> list[str]:
    names: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: names.append(name))
        for name, module in net.named_modules()
    ]
    net(torch.zeros(shape))
    for handle in handles:
        handle.remove()
    return names


@pytest.fixture(scope="module")
def resnet18(recorded: Any, filled: Callable[..., nn.Module]) -> nn.Module:
    net = create_model("cifar_resnet18", num_classes=10)
    return slim_(filled(net, recorded.fill("backbone_us_cifar_resnet18_untracked"))).double()


WATCHED = ("bn1", "layer2.0.downsample.1", "layer4.1.bn2")


@pytest.mark.parametrize("how", ["train", "cal3", "cal1"])
def test_recorded_features(recorded: Any, resnet18: nn.Module, how: str) -> None:
    arrays = recorded["features"]
    pictures = recorded.pictures((4, 3, 32, 32), recorded.shift).double()
    widths = sorted({key.split("/")[1] for key in arrays if key.startswith(f"{how}/")})
    assert len(widths) >= 4
    net: Any = resnet18
    for width in widths:
        net.apply(lambda m: m.reset_running_stats() if isinstance(m, nn.BatchNorm2d) else None)
        with at_width(net, float(width[1:])), torch.no_grad():
            net.train()
            for _ in range({"train": 0, "cal1": 1, "cal3": 3}[how]):
                for batch in arrays["cal_pictures"].double().split(4):
                    net(batch)
            kept = {
                name: {key: value.clone() for key, value in net.get_submodule(name).named_buffers()} for name in WATCHED
            }
            features = net.train(how == "train").forward_head(net.forward_features(pictures), pre_logits=True)
            logits = net.fc(features)
        close(features, arrays[f"f64/{how}/{width}/features"], 1e-8)
        close(features, arrays[f"{how}/{width}/features"].double(), 1e-4)
        close(logits, arrays[f"{how}/{width}/logits"].double(), 1e-4)
        for name in WATCHED:
            for key in ("running_mean", "running_var"):
                if f"{how}/{width}/{name}.{key}" in arrays:
                    close(kept[name][key], arrays[f"{how}/{width}/{name}.{key}"].double(), 1e-4)


def close(got: Tensor, wanted: Tensor, atol: float) -> None:
    torch.testing.assert_close(got, wanted, rtol=atol, atol=atol)
