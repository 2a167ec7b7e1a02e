"""Packed files of converted nets: size, exact weights, equal logits, mixed and dead widths."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bsq.activation import quantize_bsq_activations_
from bsq.compression import size
from bsq.network import bit_layers, to_bits_, to_finetune_
from lowbit.cost import cost
from lowbit.export.codes import read_codes
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.quant.calibrate import calibrate_

MIXED = {"conv1": [8, 0], "layer1.0.conv1": [1, 0], "layer2.1.conv2": [0, 0], "layer3.2.conv1": [5, 0], "fc": [3, 6]}


def converted(bits: int, widths: Any = None, act: int = 4, arch: str = "cifar_resnet20_1x1", **args: Any) -> nn.Module:
    torch.manual_seed(0)
    model = create_model(arch, **args)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)  # type: ignore[union-attr, operator]
            module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr, operator]
    quantize_bsq_activations_(model, act)
    return to_bits_(model, bits, widths=widths).eval()


@pytest.mark.parametrize(("bits", "widths", "act"), [(8, None, 4), (3, None, 3), (3, MIXED, 4), (1, None, 0)])
def test_packed_size_weights_and_logits(tmp_path: Path, bits: int, widths: Any, act: int) -> None:
    model, path = converted(bits, widths, act), tmp_path / "net.safetensors"
    written = save_packed(model, path, {"arch": "cifar_resnet20_1x1", "args": {"num_classes": 10}, "note": "kept"})
    found = size(model)
    assert written == path.stat().st_size <= 1.05 * (found.bits_signed / 8 + 4 * (found.float_values + found.scales))
    assert cost(model, (3, 32, 32)).stored_bits == found.bits_signed + 32 * (found.float_values + found.scales)
    loaded = load_packed(path)
    for name, layer in bit_layers(model).items():
        plain: Any = loaded.get_submodule(name)
        assert torch.equal(plain.weight, layer.effective())
        assert torch.equal(plain.weight, layer.weight_codes().values())
    x = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), atol=1e-5)
    assert read_codes(path)[0]["recipe"]["note"] == "kept"


@pytest.mark.data
@pytest.mark.parametrize(("bits", "widths"), [(8, None), (3, None), (8, MIXED)], ids=["8", "3", "mixed"])
def test_the_authors_net(tmp_path: Path, authors_resnet20: Path, bits: int, widths: Any) -> None:
    state = torch.load(authors_resnet20, map_location="cpu", weights_only=True)["state_dict"]
    model, path = create_model("cifar_resnet20_1x1"), tmp_path / "net.safetensors"
    model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    to_bits_(quantize_bsq_activations_(model, 4), bits, widths=widths).eval()
    written, found = save_packed(model, path, {"arch": "cifar_resnet20_1x1"}), size(model)
    assert written == path.stat().st_size <= 1.05 * (found.bits_signed / 8 + 4 * (found.float_values + found.scales))
    loaded = load_packed(path)
    for name, layer in bit_layers(model).items():
        plain: Any = loaded.get_submodule(name)
        assert torch.equal(plain.weight, layer.effective()), name
        assert plain.bias is None or torch.equal(plain.bias, layer.effective_bias()), name
    x = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(loaded(x), model(x), rtol=0, atol=1e-5)


def test_finetune_form_and_running_ranges_are_packed_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create_model("cifar_resnet8_1x1", num_classes=4)
    quantize_bsq_activations_(model, 4, range="running")
    to_finetune_(to_bits_(model, 3))
    calibrate_(model, [torch.randn(4, 3, 32, 32)])
    save_packed(model, tmp_path / "p.safetensors", {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 4}})
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(load_packed(tmp_path / "p.safetensors")(x), model.eval()(x), atol=1e-5)


def test_another_timm_net_is_packed(tmp_path: Path) -> None:
    model = converted(4, None, 4, "resnet10t", num_classes=4)
    save_packed(model, tmp_path / "p.safetensors", {"arch": "resnet10t", "args": {"num_classes": 4}})
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(load_packed(tmp_path / "p.safetensors")(x), model(x), atol=1e-5)
