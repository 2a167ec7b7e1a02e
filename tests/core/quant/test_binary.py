"""Binary weights and activations: recorded numbers, gradients, half precision; conversion of nets, steps."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone, save_network
from lowbit.export.packed import load_packed, save_packed
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.weight_file import digest_of, read_weights
from lowbit.models.weights import open_backbone
from lowbit.quant.binary import BinaryInput, BinaryWeight, binarize_, binary_convolutions, blind_layers, step_of
from lowbit.quant.bitwidths import UniformWeight
from lowbit.quant.conv import QuantConv2d
from lowbit.quant.layers import ActivationQuantizer, quantized_layers
from lowbit.quant.uniform import WeightConfig

HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(scope="module")
def ops(golden: Callable[[str], Path]) -> dict[str, Tensor]:
    with np.load(golden("s2bnn") / "ops.npz") as arrays:
        return {key: torch.as_tensor(arrays[key]) for key in arrays.files if key.startswith(("act.", "wbin."))}


def names(ops: dict[str, Tensor], kind: str) -> list[str]:
    return sorted({key.rpartition(".")[0] for key in ops if key.startswith(kind)})


def test_recorded_signs(ops: dict[str, Tensor]) -> None:
    for name in names(ops, "act."):
        x = ops[f"{name}.x"].requires_grad_()
        y = BinaryInput()(x)
        y.backward(ops[f"{name}.g"])
        recorded = torch.where(x == 0, 1.0, ops[f"{name}.y"])  # the original's sign(0) is 0
        assert torch.equal(y, recorded) and x.grad is not None
        assert torch.allclose(x.grad, ops[f"{name}.dx"], rtol=1e-6, atol=1e-7)


def test_recorded_convolutions(ops: dict[str, Tensor]) -> None:
    """The first weight is 0: the original's binary weight is 0 there, ours +alpha; both are compared less that."""
    assert len(names(ops, "wbin.")) == 3
    for name in names(ops, "wbin."):
        w, x, dy, (stride, padding) = *(ops[f"{name}.{key}"] for key in ("w", "x", "dy")), ops[f"{name}.cfg"].tolist()
        conv = nn.Conv2d(w.shape[1], w.shape[0], w.shape[2], stride, padding, bias=False)
        conv.weight = nn.Parameter(w.clone())
        layer, x = QuantConv2d(conv, BinaryWeight()), x.requires_grad_()
        y = layer(x)
        y.backward(dy)
        assert conv.weight.grad is not None and x.grad is not None
        zeros = torch.where(w == 0, w.abs().mean((1, 2, 3), keepdim=True), 0.0)
        assert zeros[0].any() and torch.allclose(BinaryWeight()(w) - zeros, ops[f"{name}.wb"], rtol=1e-6)
        difference = F.conv2d(x.detach(), zeros, None, stride, padding)
        assert torch.allclose(y - difference, ops[f"{name}.y"], atol=2e-6)
        back = torch.nn.grad.conv2d_input(x.shape, zeros, dy, stride, padding)
        assert torch.allclose(x.grad - back, ops[f"{name}.dx"], atol=2e-6)
        assert torch.allclose(conv.weight.grad, ops[f"{name}.dw"], rtol=1e-5, atol=1e-5)
        assert not conv.weight.grad[w.abs() >= 1].any() and conv.weight.grad[w.abs() < 1].any()


def test_gradients_of_the_sign_and_of_the_weights() -> None:
    x = torch.tensor([-2, -1, -0.5, 0, 0.5, 1, 2], requires_grad=True)
    y = BinaryInput()(x)
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 0, 1, 2, 1, 0, 0] and y.tolist() == [-1, -1, -1, 1, 1, 1, 1]
    w = torch.tensor([[-1.5, -1, -0.5, -0.0], [0, 0.5, 1, 3]], requires_grad=True)
    b, g = BinaryWeight()(w), torch.arange(1.0, 9).view(2, 4)
    b.backward(g)
    assert w.grad is not None and w.grad.tolist() == [[0, 0, 3, 4], [5, 6, 0, 0]]  # no alpha in it, none through it
    assert b.tolist() == [[-0.75, -0.75, -0.75, 0.75], [1.125] * 4]


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_gives_no_nan(dtype: torch.dtype) -> None:
    x = torch.tensor([-torch.inf, -1e4, -300, -1e-7, 0, 0.25, 1e4, torch.inf], dtype=dtype, requires_grad=True)
    y = BinaryInput()(x)
    y.backward(torch.ones_like(y))
    assert y.dtype == dtype and y.tolist() == [-1] * 4 + [1] * 4
    assert x.grad is not None and x.grad.tolist() == [0, 0, 0, 2, 2, 1.5, 0, 0]
    w = torch.full((2, 4608), -1e4, dtype=dtype, requires_grad=True)
    b = BinaryWeight()(w)
    b.sum().backward()
    assert b.dtype == dtype and torch.equal(b, w) and w.grad is not None and not w.grad.any()


def conv_net() -> nn.Module:
    """A stem and three convolutions, the second of them with a bias, the third on 0s beyond the border."""
    torch.manual_seed(0)
    stem, more = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 1)
    return nn.Sequential(stem, nn.ReLU(), more, nn.BatchNorm2d(4), nn.ReLU6(), nn.Conv2d(4, 6, 3, padding=1))


def test_codes_of_one_bit_are_the_weights() -> None:
    net = binarize_(conv_net(), 2)
    layers = dict(quantized_layers(net))
    assert list(layers) == ["2", "5"]
    for layer in layers.values():
        assert isinstance(layer, QuantConv2d)
        codes, grid = layer.weight_codes(), layer.input_grid()
        assert codes is not None and set(codes.codes.unique().tolist()) == {0, 1}, "fresh weights have both signs"
        assert (codes.grid.bits, codes.grid.signed, float(codes.grid.zero_point)) == (1, False, 0.5)
        assert torch.equal(codes.values(), layer._weight()) and torch.equal(layer.to_plain().weight, layer._weight())
        assert grid is not None and grid.bits == 1 and isinstance(layer.input_quantizer, ActivationQuantizer)
        assert set(((torch.tensor([0, 1]) - grid.zero_point) * grid.scale).tolist()) == {-1, 1}


@torch.no_grad()
def test_padding_follows_the_sign() -> None:
    """Taps beyond the border see 0: at a corner of a map of one value four of nine taps count."""
    conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.constant_(conv.weight, 0.5)
    for mode, corner in (("zeros", 4), ("replicate", 9)):
        conv.padding_mode = mode
        y = QuantConv2d(conv, BinaryWeight(), BinaryInput())(torch.full((1, 1, 5, 5), -0.2))
        assert float(y[0, 0, 2, 2]) == -4.5 and float(y[0, 0, 0, 0]) == -0.5 * corner


def test_steps_keep_the_weights_and_every_key() -> None:
    net, x = conv_net(), torch.randn(2, 3, 8, 8)
    plain, weights = net(x), dict(net.named_parameters())
    assert step_of(net) == 0 and torch.equal(binarize_(net, 0)(x), plain) and type(net[1]) is nn.ReLU  # type: ignore[index]
    assert step_of(binarize_(nn.Linear(3, 2), 0)) == 0, "a net without convolutions is real-valued, too"
    outputs, keys = {}, {}
    for step in (1, 2, 0, 2, 1):
        binarize_(net, step)
        assert step_of(net) == step and all(dict(net.named_parameters())[key] is p for key, p in weights.items())
        y, keys[step] = net(x).detach(), list(net.state_dict())
        assert torch.equal(outputs.setdefault(step, y), y)
    assert keys[0] == keys[1] == keys[2] and len({float(y.sum()) for y in outputs.values()}) == 3
    assert set(keys[0]) - {"1.weight", "4.weight"} == set(conv_net().state_dict()), "slopes in the places of ReLUs"
    assert binary_convolutions(net) == ["2", "5"]


@pytest.mark.parametrize(
    ("net", "step", "says"),
    [
        (conv_net, 3, r"step 3: one of 0 \(real-valued\), 1 "),
        (conv_net, True, "step True: one of 0"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), 1, "no convolution to binarize beside its stem"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), QuantConv2d(nn.Conv2d(4, 4, 1), UniformWeight(WeightConfig()))),
         2, "layer 1: it is quantized otherwise"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))),
         2, "layer 1: its weight is no parameter"),
    ],
)  # fmt: skip
def test_what_is_refused(net: Any, step: Any, says: str) -> None:
    made = net()
    with pytest.raises(InputError, match=says) as refusal:
        binarize_(made, step)
    assert "\n" not in str(refusal.value) and step_of(made) == 0


@pytest.mark.parametrize("arch", ["resnet10t", "test_efficientnet"])
def test_any_net_of_timm(arch: str) -> None:
    with torch.device("meta"):
        net = create_model(arch, num_classes=7)
        convolutions = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d)]
        binarize_(net, 2)
        net(torch.randn(2, 3, 64, 64)).sum().backward()
    found = cost(net, (3, 64, 64))
    assert [row.name for row in found.layers if row.bits == row.input_bits == 1] == convolutions[1:]
    assert not any(isinstance(m, nn.ReLU | nn.ReLU6) for m in net.modules())
    assert found.binary_macs > 4 * found.real_macs and found.ops < found.macs / 4
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("step", [1, 2])
def test_a_step_reads_nothing_back(step: int) -> None:
    with FakeTensorMode():
        net = binarize_(conv_net(), step)
        net(torch.randn(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@torch.no_grad()
def test_a_binarized_net_packed_and_read_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = binarize_(create_model("cifar_resnet8_1x1", num_classes=3), 2).eval()
    net.layer1[0].relu1.weight.fill_(0.1)  # type: ignore[index, union-attr]
    size, path, x = (3, 32, 32), tmp_path / "net", torch.randn(2, 3, 32, 32)
    written = save_packed(net, path, {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}})
    loaded, found = load_packed(path), cost(net, size)
    assert torch.equal(loaded(x), net(x)) and step_of(loaded) == 1, "the weights are now +-alpha as they stand"
    assert found.bytes <= written < found.bytes + 4000 and found.binary_parameters == 76_288
    assert [row.input_bits for row in cost(loaded, size).layers] == [row.input_bits for row in found.layers]


CFG = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_mode": "center"}
CFG |= {"interpolation": "bilinear"}


@pytest.mark.parametrize("step", [1, 2])
@torch.no_grad()
def test_exported_floats_state_the_step(tmp_path: Path, step: int) -> None:
    torch.manual_seed(0)
    net, path, x = create_model("cifar_resnet8_1x1", num_classes=3), tmp_path / "net", torch.randn(2, 3, 32, 32)
    binarize_(net, step).eval().layer1[0].relu1.weight.fill_(0.1)  # type: ignore[index, union-attr, operator]
    save_network(net, path, "cifar_resnet8_1x1", 3, CFG)
    loaded = load(path)
    assert step_of(loaded) == step_of(net) == step and torch.equal(loaded(x), net(x))
    assert torch.equal(loaded.layer1[0].conv1.weight, net.layer1[0].conv1.weight), "the trained ones"  # type: ignore[index, union-attr]
    save_backbone(net, path, "cifar_resnet8_1x1")
    loaded = load(path)
    assert step_of(loaded) == step and torch.equal(
        loaded(x), net.forward_head(net.forward_features(x), pre_logits=True)
    )  # type: ignore[operator]
    with pytest.raises(InputError, match="it is a binary net, and a real-valued one is needed"):
        open_backbone(path)
    said = {"arch": "cifar_resnet8_1x1", "binarization": 7 * step}
    tensors = load_file(path)
    save_file(tensors, path, {"lowbit.backbone": json.dumps(said | {"digest": digest_of(said, tensors)})})
    assert read_weights(path).said["binarization"] == 7 * step
    with pytest.raises(InputError, match=rf"its description of its net is wrong \(step {7 * step}: one of"):
        load(path)


class Functional(nn.Module):
    """Two convolutions behind a ReLU that is no module, one behind none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.c = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
            nn.Conv2d(4, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.c(self.b(F.relu(self.a(x))) - 1)


def test_layers_to_which_the_sign_says_nothing_are_found() -> None:
    net = Functional().train()
    assert blind_layers(net, (3, 8, 8)) == []
    assert blind_layers(binarize_(net, 1), (3, 8, 8)) == ["a", "b"] and net.training
    seen: list[Any] = []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    assert blind_layers(net, (3, 4096, 8)) == ["a", "b"] and seen == [(1, 3, 512, 8)]
