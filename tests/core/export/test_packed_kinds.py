"""Packed files and cost of layers that no method has yet: binary, evenly spaced around 0, slimmed; own input grids."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lowbit.cost import Cost, cost
from lowbit.errors import InputError
from lowbit.export.backbone import save_network
from lowbit.export.codes import KEY
from lowbit.export.packed import load_packed, save_packed
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.surgery import conv_like, replace_
from lowbit.models.weight_file import digest_of, read_weights
from lowbit.quant.activations import ActivationConfig, QuantActivation
from lowbit.quant.calibrate import calibrate_
from lowbit.quant.conv import QuantConv2d, QuantLinear, with_tensors
from lowbit.quant.layers import Codes, Grid, quantized_layers
from lowbit.quant.observers import ObservedActivation, ObserverConfig

RECIPE = {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}}
SIZE = (3, 32, 32)
X = torch.randn(4, *SIZE, generator=torch.Generator().manual_seed(0))


class Binary(nn.Module):
    """w -> sign(w) mean|w|, a mean for each output channel: codes 0 and 1, zero point 1/2, scale 2 alpha."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.where(weight >= 0, self.alpha(weight), -self.alpha(weight))

    def alpha(self, weight: Tensor) -> Tensor:
        return weight.abs().flatten(1).mean(1).view(-1, *[1] * (weight.dim() - 1))

    def codes(self, weight: Tensor) -> Codes:
        return Codes((weight >= 0).int(), Grid(2 * self.alpha(weight), torch.tensor(0.5), 1, signed=False))


class Even(nn.Module):
    """2^b levels that lie evenly around 0 (none is 0), from -size to size, with a learned size."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits, self.top, self.size = bits, 2**bits - 1, nn.Parameter(torch.tensor(0.3))

    def forward(self, weight: Tensor) -> Tensor:
        return (self.levels(weight) - self.top / 2) * (2 * self.size / self.top)

    def levels(self, weight: Tensor) -> Tensor:
        return ((weight / self.size).clamp(-1, 1).add(1) * (self.top / 2)).round()

    def codes(self, weight: Tensor) -> Codes:
        scale = (2 * self.size / self.top).detach()
        return Codes(self.levels(weight).int(), Grid(scale, torch.tensor(self.top / 2), self.bits, signed=False))


class Slim(nn.Module):
    """A part of a layer: `width` of its output and `into` of its input channels; at 4 bits where `coded`."""

    def __init__(self, layer: Any, into: float, width: float, coded: bool = False) -> None:
        super().__init__()
        self.layer, self.coded = [layer], coded  # out of reach of parameters()
        self.weight, self.bias = layer.weight, layer.bias
        self.out, self.into = int(len(layer.weight) * width), into
        if isinstance(layer, nn.BatchNorm2d):
            self.running_mean, self.running_var = layer.running_mean, layer.running_var

    def part(self) -> Tensor:
        weight = self.weight[: self.out]
        return weight[:, : int(weight.shape[1] * self.into)] if weight.dim() > 1 else weight

    def weight_codes(self) -> Codes | None:
        if not self.coded or self.weight.dim() == 1:
            return None
        part = self.part().detach()
        scale = part.abs().max() / 7
        return Codes((part / scale).round().int(), Grid(scale, torch.zeros(()), 4, signed=True))

    def bias_codes(self) -> None:
        return None

    def input_grid(self) -> None:
        return None

    @torch.no_grad()
    def to_plain(self) -> Any:
        codes, (layer,) = self.weight_codes(), self.layer
        weight = self.part() if codes is None else codes.values()
        bias = None if self.bias is None else self.bias[: self.out]
        if isinstance(layer, nn.Conv2d):
            return with_tensors(conv_like(layer, in_channels=weight.shape[1], out_channels=self.out), weight, bias)
        if isinstance(layer, nn.Linear):
            return with_tensors(nn.Linear(weight.shape[1], self.out, device="meta"), weight, bias)
        norm = with_tensors(nn.BatchNorm2d(self.out), weight, bias)
        norm.running_mean, norm.running_var = self.running_mean[: self.out], self.running_var[: self.out]
        return norm

    def forward(self, x: Tensor) -> Tensor:
        return self.to_plain().train(self.training)(x)


def net_of(quantizer: Any = None, *, own_input: Any = None) -> nn.Module:
    """ResNet-8 whose every convolution and linear layer has that weight quantizer."""
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    new: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        kinds = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
        if type(module) in kinds:
            new[name] = kinds[type(module)](module, quantizer() if quantizer else None, own_input and own_input())  # type: ignore[arg-type]
    return replace_(net, new)


def slimmed(coded: bool = False) -> nn.Module:
    """ResNet-8 at half its width."""
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    new: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            into, width = 1.0 if name == "conv1" else 0.5, 1.0 if name == "fc" else 0.5
            new[name] = Slim(module, into, width, coded)
    return replace_(net, new)


def rows(found: Cost) -> dict[str, Any]:
    return {row.name: row for row in found.layers}


def head_bytes(path: Path) -> int:
    with safe_open(str(path), "pt") as file:
        return len(file.metadata()[KEY]) + 600  # and what safetensors writes itself


@pytest.mark.parametrize(("quantizer", "bits"), [(Binary, 1), (lambda: Even(2), 2), (lambda: Even(4), 4)])
@torch.no_grad()
def test_half_integer_zero_points(tmp_path: Path, quantizer: Any, bits: int) -> None:
    net, plain = net_of(quantizer), rows(cost(create_model("cifar_resnet8_1x1", num_classes=3), SIZE))
    written = save_packed(net, tmp_path / "net", RECIPE)
    loaded = load_packed(tmp_path / "net")
    weights, scales = 0, 0
    for name, layer in quantized_layers(net):
        codes, ours = layer.weight_codes(), layer.to_plain()
        assert codes is not None and codes.grid.bits == bits and 0 <= codes.codes.min() <= codes.codes.max() < 2**bits
        assert torch.equal(codes.values(), ours.weight) and torch.equal(loaded.get_submodule(name).weight, ours.weight)
        assert len(ours.weight[0].unique()) <= 2**bits and not (ours.weight == 0).any()
        weights, scales = weights + codes.codes.numel(), scales + codes.grid.scale.numel()
        row = rows(cost(net, SIZE))[name]
        assert (row.parameters, row.macs, row.bits) == (plain[name].parameters, plain[name].macs, bits)
        assert row.bops == row.macs * bits * 32 and row.kind in ("QuantConv2d", "QuantLinear")
        own_bias = 0 if ours.bias is None else ours.bias.numel()
        assert row.stored_bits == codes.codes.numel() * bits + 32 * (codes.grid.scale.numel() + 1 + own_bias)
    assert torch.equal(loaded(X), net(X))
    floats = sum(t.numel() for key, t in loaded.state_dict().items() if t.is_floating_point()) - weights
    least = weights * bits / 8 + 4 * (scales + floats)
    assert least <= written <= least + head_bytes(tmp_path / "net") + len(list(quantized_layers(net)))
    assert cost(net, SIZE).parameters == sum(row.parameters for row in plain.values())


@pytest.mark.parametrize("coded", [False, True])
@torch.no_grad()
def test_slimmed_layers(tmp_path: Path, coded: bool) -> None:
    net, full = slimmed(coded), rows(cost(create_model("cifar_resnet8_1x1", num_classes=3), SIZE))
    found = rows(cost(net, SIZE))
    assert found.keys() == full.keys()
    for name, row in found.items():
        share = 2 if name in ("conv1", "fc") or "bn" in name or name.endswith("downsample.1") else 4
        biases = 3 if name == "fc" else 0
        assert (
            row.macs * share == full[name].macs and (row.parameters - biases) * share == full[name].parameters - biases
        )
        assert row.bits == (4 if coded and full[name].macs else 32) and row.bops == row.macs * row.bits * 32
    assert sum(row.macs for row in found.values()) < sum(row.macs for row in full.values()) / 3
    written = save_packed(net, tmp_path / "net", RECIPE)
    loaded: Any = load_packed(tmp_path / "net")
    assert loaded.layer3[0].conv1.weight.shape == (32, 16, 3, 3) and loaded.bn1.num_features == 8
    assert torch.equal(loaded(X), net(X)) and cost(loaded, SIZE).macs == cost(net, SIZE).macs
    for name, layer in quantized_layers(net):
        assert torch.equal(loaded.get_submodule(name).weight, layer.to_plain().weight)
    bits = cost(net, SIZE).stored_bits
    assert bits / 8 <= written <= bits / 8 + head_bytes(tmp_path / "net") + len(found)


@torch.no_grad()
def test_a_layer_s_own_input_quantizer_comes_back(tmp_path: Path) -> None:
    def observed() -> nn.Module:
        quantizer = ObservedActivation("gelu", ObserverConfig(), 6)
        quantizer.mode = "quantized"
        return quantizer

    for own in (observed, lambda: QuantActivation(ActivationConfig(3, "silu", "running"))):
        net = net_of(Binary, own_input=own)
        calibrate_(net, [X])
        save_packed(net, tmp_path / "net", RECIPE)
        loaded = load_packed(tmp_path / "net")
        assert torch.equal(loaded(X), net(X)) and isinstance(loaded.get_submodule("conv1"), QuantConv2d)
        ours, theirs = (rows(cost(m, SIZE))["conv1"].input_bits for m in (net, loaded))
        assert ours == theirs == (6 if own is observed else 4)


class Odd(nn.Module):
    """Zero points of thirds."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight

    def codes(self, weight: Tensor) -> Codes:
        return Codes(weight.sign().int(), Grid(torch.tensor(1.0), torch.tensor(1 / 3), 2, signed=True))


class Beyond(Odd):
    """Codes of -1 and 1 at one signed bit."""

    def codes(self, weight: Tensor) -> Codes:
        return Codes(weight.sign().int(), Grid(torch.tensor(1.0), torch.tensor(0.0), 1, signed=True))


class Unknown(QuantActivation):
    """A kind of quantizer that only its method knows."""


def test_what_a_packed_file_cannot_hold(tmp_path: Path) -> None:
    for quantizer, says in (
        (Odd, "conv1.weight: a zero point is not a multiple"),
        (Beyond, "do not fit 1 bits, signed"),
    ):
        with pytest.raises(InputError, match=says):
            save_packed(net_of(quantizer), tmp_path / "net", RECIPE)
    with pytest.raises(InputError, match=r"conv1.input_quantizer: a packed file cannot hold a Unknown"):
        save_packed(net_of(Binary, own_input=lambda: Unknown(ActivationConfig(3))), tmp_path / "net", RECIPE)
    assert not list(tmp_path.iterdir())


CFG = {"input_size": [3, 16, 16], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_mode": "center"}
CFG |= {"interpolation": "bilinear", "label_names": ["a", "b", "c"]}


@torch.no_grad()
def test_a_whole_slimmed_net_as_floats(tmp_path: Path) -> None:
    net, path = slimmed(), tmp_path / "net.safetensors"
    save_network(net, path, "cifar_resnet8_1x1", 3, CFG)
    loaded: Any = load(path)
    assert torch.equal(loaded(X), net(X)) and loaded.bn1.num_features == 8
    assert loaded.pretrained_cfg["label_names"] == ("a", "b", "c") and loaded.pretrained_cfg["num_classes"] == 3
    save_network(net, path, "cifar_resnet8_1x1", 0, CFG)
    assert torch.equal(load(path)(X), net.forward_head(net.forward_features(X), pre_logits=True))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("classes", -1), ("classes", "3"), ("sizes", {"conv1": {"out_channels": 99}}), ("sizes", [1]),
        ("sizes", {"nobody": {}}), ("sizes", {"conv1": {"out_channels": "8"}}), ("sizes", {"conv1": 8}),
        ("sizes", {"fc": {"in_features": 8}}), ("sizes", {"relu": {}}), ("arch", "vit_giant_patch14_224"),
    ],
)  # fmt: skip
def test_a_damaged_description_of_a_whole_net(tmp_path: Path, entry: str, value: Any) -> None:
    path = tmp_path / "net.safetensors"
    save_network(slimmed(), path, "cifar_resnet8_1x1", 3, CFG)
    tensors, said = load_file(path), read_weights(path).said
    said = {key: said[key] for key in ("arch", "classes", "sizes", "pretrained_cfg")} | {entry: value}
    save_file(tensors, path, {"lowbit.backbone": json.dumps(said | {"digest": digest_of(said, tensors)})})
    with pytest.raises(InputError, match=r"net\.safetensors") as found:
        load(path)
    assert "\n" not in str(found.value)
