"""Layers composed of an ordinary one and quantizers; which layers are ordinary, through every method's conversion."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm

from bsq.network import bit_layers, to_bits_
from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.models.surgery import conv_like, replace_
from lowbit.quant.activations import ActivationConfig, QuantActivation
from lowbit.quant.bitwidths import UniformWeight, quantize_uniform_
from lowbit.quant.calibrate import calibrate_, uncalibrated
from lowbit.quant.conv import QuantConv2d, QuantLinear, check_plain
from lowbit.quant.layers import QuantizedLayer, quantized_layers, quantizers
from lowbit.quant.trace import trace
from lowbit.quant.uniform import WeightConfig
from ssql.bit_policy import derive_policy

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def uniform(net: nn.Module) -> nn.Module:
    return quantize_uniform_(net, derive_policy(net, (3, 8, 8)))


CONVERSIONS = pytest.mark.parametrize("convert", [uniform, lambda net: to_bits_(net, 4)], ids=["uniform", "planes"])


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


def computed(conv: nn.Conv2d) -> nn.Module:
    weight = conv.weight
    del conv.weight
    conv.weight = weight.detach() * 2  # a plain tensor
    return conv


def patched(conv: nn.Conv2d) -> nn.Module:
    conv.forward = lambda x: x  # type: ignore[method-assign]
    return conv


def hooked(conv: nn.Conv2d) -> nn.Module:
    conv.register_forward_pre_hook(lambda module, args: None)
    return conv


ODD: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "the former spectral_norm": spectral_norm,
    "pruned": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "a pruned bias": lambda conv: prune.l1_unstructured(conv, "bias", 0.5),
    "parametrized": lambda conv: parametrize.register_parametrization(conv, "weight", Double()),
    "computed": computed,
    "subclass": lambda conv: Standardised(3, 4, 1),
    "patched": patched,
    "hooked": hooked,
}


@CONVERSIONS
@pytest.mark.parametrize("kind", ODD)
def test_a_layer_that_is_not_what_it_seems_is_refused_in_one_line(kind: str, convert: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), ODD[kind](nn.Conv2d(3, 4, 1)))
    with pytest.raises(InputError, match=r"layer 1: .*(exclude it|remove them)") as refusal:
        convert(net)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300
    assert not list(quantized_layers(net)), "nothing was converted"


@pytest.mark.parametrize("undone", [prune.remove, parametrize.remove_parametrizations])
@CONVERSIONS
def test_what_was_made_a_parameter_again_is_taken(undone: Any, convert: Any) -> None:
    conv = nn.Conv2d(3, 4, 1)
    if undone is prune.remove:
        prune.l1_unstructured(conv, "weight", 0.5)
    else:
        parametrizations.weight_norm(conv)
    undone(conv, "weight")
    assert len(list(quantized_layers(convert(nn.Sequential(conv))))) == 1


class Tied(nn.Module):
    """Two linear layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.mean((2, 3))))


def test_tied_weights_stay_tied_or_are_refused() -> None:
    net: Any = uniform(Tied())
    assert isinstance(net.a, QuantLinear) and net.a.weight is net.b.weight and len(list(net.parameters())) == 3
    with pytest.raises(InputError, match="layers a and b share one weight"):
        to_bits_(Tied(), 4)
    with pytest.raises(InputError, match="layers a and b share one weight"):
        to_bits_(Tied(), 4, include=("b",))
    net = Tied()
    net.c = nn.Linear(3, 3)
    assert list(bit_layers(to_bits_(net, 4, include=("c",)))) == ["c"]


class Twice(nn.Module):
    """One convolution and one activation that are reached by two names each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.again = nn.Sequential(self.first, self.act)

    def forward(self, x: Tensor) -> Tensor:
        return self.again(self.act(self.first(x)))


@CONVERSIONS
def test_a_module_of_two_names_is_replaced_in_both_places(convert: Any) -> None:
    net: Any = convert(Twice())
    assert isinstance(net.first, QuantizedLayer) and net.again[0] is net.first and net.again[1] is net.act
    assert net(X).shape == X.shape and [name for name, _ in quantized_layers(net)] == ["first"]


def test_replacing_keeps_the_other_places() -> None:
    net: Any = Twice()
    replace_(net, {"again.1": nn.ReLU6(), "first": nn.Conv2d(3, 3, 3, padding=1)})
    assert isinstance(net.act, nn.ReLU6) and net.again[1] is net.act and net.again[0] is net.first


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
def test_a_convolution_like_another_has_no_memory(kind: Any) -> None:
    conv = kind(4, 6, 3, stride=2, dilation=1, groups=2)
    like = conv_like(conv, in_channels=2, out_channels=2)
    assert type(like) is kind and like.weight.is_meta and like.weight.shape == (2, 1, 3, 3) and like.bias is not None
    assert (like.stride, like.padding, like.groups) == (conv.stride, conv.padding, 2)


def test_a_layer_s_own_input_quantizer() -> None:
    """Two layers take one tensor, each on a grid of its own; the second's is calibrated with the rest."""
    torch.manual_seed(0)
    conv = QuantConv2d(nn.Conv2d(3, 4, 1), None, QuantActivation(ActivationConfig(3, "relu", "running")))
    other = QuantConv2d(nn.Conv2d(3, 4, 1), UniformWeight(WeightConfig()))
    plain, weight = conv.to_plain(), conv.weight
    net = nn.Sequential(QuantActivation(ActivationConfig(5)), nn.Sequential(conv), nn.Conv2d(4, 3, 1), other)
    assert list(quantizers(net)) == ["0", "1.0.input_quantizer"] and uncalibrated(net) == ["1.0.input_quantizer"]
    calibrate_(net, [X])
    largest = conv.input_quantizer.largest
    assert not uncalibrated(net) and float(largest) == pytest.approx(float(X.max()))
    step = largest / 7
    assert torch.allclose(conv(X), plain((X.relu() / step).round() * step), atol=1e-6)
    grids = {name: found.input_grid for name, found in trace(net, (3, 8, 8)).items()}
    assert grids["2"] is None and grids["3"] is None
    own = grids["1.0"]
    assert own is not None and own.bits == 3 and torch.equal(own.scale, step) and not own.signed
    rows = {row.name: row for row in cost(net, (3, 8, 8)).layers}
    assert (rows["1.0"].bits, rows["1.0"].input_bits, rows["1.0"].parameters) == (32, 3, 16)
    assert rows["1.0"].stored_bits == 32 * 17, "the range of its input, too"
    assert conv.weight_codes() is None and conv.weight is weight and torch.equal(plain.weight, weight)
    assert "1.0.input_quantizer.largest" in net.state_dict()


def test_grids_of_inputs_keep_sign_and_zero_point() -> None:
    relu, silu = (QuantActivation(ActivationConfig(4, f, "running")) for f in ("relu", "silu"))
    for q in (relu, silu):
        calibrate_(q, [X])
    grid, signed = relu.grid(), silu.grid()
    assert grid is not None and (grid.bits, grid.signed, float(grid.zero_point)) == (4, False, 0)
    assert signed is not None and (signed.bits, signed.signed) == (5, True), "codes from -15 to 15"
    y = silu(X)
    codes = (y / signed.scale).round()
    assert torch.allclose(codes * signed.scale, y) and codes.abs().max() <= 15 and codes.min() < 0
    batch = QuantActivation(ActivationConfig(4)).grid()
    assert batch is not None and batch.scale.isnan() and batch.bits == 4
    assert QuantActivation(ActivationConfig(0)).grid() is None


def test_ordinary_layers_pass() -> None:
    for layer in (nn.Conv2d(1, 1, 1), Conv2dSame(1, 1, 3), nn.Linear(2, 2, bias=False)):
        check_plain(layer)
    with pytest.raises(InputError, match="lazy layer"):
        check_plain(nn.LazyConv2d(4, 1))
    with pytest.raises(InputError, match="QuantLinear is not used as an ordinary"):
        check_plain(QuantLinear(nn.Linear(2, 2)))
