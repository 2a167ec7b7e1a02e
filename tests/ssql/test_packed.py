"""Packed files of nets under uniform quantization, at any bits: weights, ranges and outputs come back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.quant.bitwidths import quantize_uniform_, set_bits_, set_mode_
from lowbit.quant.calibrate import calibrate_, uncalibrated
from lowbit.quant.layers import quantized_layers
from lowbit.quant.observers import ObserverConfig
from lowbit.quant.uniform import WeightConfig
from ssql.bit_policy import derive_policy

RECIPE = {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}}
X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def wrapped(**configs: Any) -> nn.Module:
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    quantize_uniform_(net, derive_policy(net, (3, 32, 32)), **configs)
    calibrate_(net, [X])
    return net


@pytest.mark.parametrize(("w", "a"), [(4, 4), (4, 0), (2, 8), (0, 0), (0, 4), (8, 2)])
@pytest.mark.parametrize("per_channel", [True, False])
@torch.no_grad()
def test_a_net_at_any_bits_comes_back(tmp_path: Path, w: int, a: int, per_channel: bool) -> None:
    net = wrapped(weight=WeightConfig(per_channel=per_channel))
    set_mode_(set_bits_(net, w, a), "quantized")
    written = save_packed(net, tmp_path / "net.safetensors", RECIPE)
    loaded = load_packed(tmp_path / "net.safetensors")
    assert torch.equal(loaded(X), net(X)) and not uncalibrated(loaded)
    for name, layer in quantized_layers(net):
        codes, plain = layer.weight_codes(), loaded.get_submodule(name)
        assert codes is None if w == 0 else codes is not None and torch.equal(plain.weight, codes.values())
    bits, head = cost(net, (3, 32, 32)).stored_bits, 6000
    assert bits / 8 <= written <= bits / 8 + head
    assert cost(loaded, (3, 32, 32)).bops >= cost(net, (3, 32, 32)).bops


@torch.no_grad()
def test_other_observers_and_functions(tmp_path: Path) -> None:
    net = wrapped(observer=ObserverConfig("gaussian"))
    set_mode_(set_bits_(net, 3, 3), "quantized")
    save_packed(net, tmp_path / "net.safetensors", RECIPE)
    assert torch.equal(load_packed(tmp_path / "net.safetensors")(X), net(X))


def test_a_projector_is_no_net_of_the_recipe(tmp_path: Path) -> None:
    net = wrapped()
    net.fc = nn.Sequential(nn.Linear(64, 3))
    with pytest.raises(InputError, match="another net"):
        save_packed(net, tmp_path / "net.safetensors", RECIPE)
