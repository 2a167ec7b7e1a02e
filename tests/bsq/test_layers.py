"""BSQ's layers: the layer protocol, every kind of convolution, forms, and loading other widths."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from bsq.bit_layer import BIAS, WEIGHT
from bsq.layers import BitConv2d, BitLinear
from bsq.planes import prune, requantize
from lowbit.errors import InputError
from lowbit.quant.layers import QuantizedLayer

CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(4, 6, 3, bias=False),
    "bias": lambda: nn.Conv2d(4, 6, 3, padding=1),
    "grouped": lambda: nn.Conv2d(4, 6, 3, stride=2, groups=2, dilation=2),
    "depthwise": lambda: nn.Conv2d(4, 8, 3, groups=4),
    "same": lambda: nn.Conv2d(4, 6, (3, 5), padding="same"),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "timm": lambda: Conv2dSame(4, 6, 3, stride=2),
}


def layer_of(kind: str, bits: int = 4, bias_bits: int | None = None) -> tuple[Any, Any, torch.Tensor]:
    """(plain layer, bit layer, input)."""
    torch.manual_seed(0)
    if kind == "linear":
        linear = nn.Linear(5, 3)
        return linear, BitLinear(linear, bits, bias_bits), torch.randn(7, 5)
    conv = CONVOLUTIONS[kind]()
    return conv, BitConv2d(conv, bits, bias_bits), torch.randn(2, 4, 9, 8)


@pytest.mark.parametrize("kind", [*CONVOLUTIONS, "linear"])
def test_every_kind_computes_what_the_plain_layer_does_with_its_weights(kind: str) -> None:
    plain, layer, x = layer_of(kind, 5, 7)
    assert isinstance(layer, QuantizedLayer) and not isinstance(plain, QuantizedLayer)
    codes = layer.weight_codes()
    assert codes.grid.bits == 6 and codes.grid.signed and codes.codes.dtype == torch.int32
    assert torch.equal(codes.values(), layer.effective())
    bias = layer.bias_codes()
    assert (bias is None) == (plain.bias is None)
    if bias is not None:
        assert bias.grid.bits == 8 and torch.equal(bias.values(), layer.effective_bias())
    again = layer.to_plain()
    assert type(again) is type(plain) and torch.equal(again(x), layer(x))
    plain.weight.data = layer.effective().detach()
    if plain.bias is not None:
        plain.bias.data = layer.effective_bias().detach()
    assert torch.equal(plain(x), layer(x))


def test_eight_bits_are_near_the_float_layer_and_train() -> None:
    plain, layer, x = layer_of("bias", 8)
    assert torch.allclose(plain(x), layer(x), atol=0.02)
    layer(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in layer.parameters())


@pytest.mark.parametrize("kind", ["bias", "linear"])
def test_finetune_form_keeps_the_bias_and_returns_exactly(kind: str) -> None:
    _, layer, x = layer_of(kind, 3, 5)
    before, widths = layer(x), (layer.bits(WEIGHT), layer.bits(BIAS))
    layer.to_finetune_()
    assert layer.form == "finetune" and {n for n, _ in layer.named_parameters()} == {
        "weight",
        "bias",
        "scale",
        "biasscale",
    }
    assert torch.allclose(layer(x), before, atol=1e-6) and (layer.bits(WEIGHT), layer.bits(BIAS)) == widths
    latent = layer(x)
    layer(x).sum().backward()
    assert layer.bias.grad.abs().min() > 0
    assert torch.equal(layer.weight_codes().values(), layer.effective())
    assert torch.equal(layer.to_bits_()(x), latent)


def test_a_layer_is_copied_and_moved() -> None:
    _, layer, x = layer_of("bias")
    other = deepcopy(layer)
    assert torch.equal(other(x), layer(x))
    assert torch.allclose(other.double()(x.double()).float(), layer(x), atol=1e-6)


def test_loading_takes_over_widths_and_forms() -> None:
    _, small, x = layer_of("linear", 2, 5)
    _, large, _ = layer_of("linear", 8)
    large.load_state_dict(small.state_dict())
    assert (large.bits(WEIGHT), large.bits(BIAS)) == (2, 5) and torch.equal(large(x), small(x))
    small.to_finetune_()
    _, other, _ = layer_of("linear", 8)
    other.set_latent_bits_(2, 5).load_state_dict(small.state_dict())
    assert other.form == "finetune" and torch.equal(other(x), small(x))
    other.load_state_dict(large.state_dict())
    assert other.form == "bit" and torch.equal(other(x), large(x))


def test_loading_another_layer_is_refused() -> None:
    _, layer, _ = layer_of("linear")
    state = BitLinear(nn.Linear(6, 3), 4).state_dict()
    with pytest.raises(RuntimeError, match="size mismatch for pweight"):
        layer.load_state_dict(state)
    with pytest.raises(RuntimeError, match="Missing key"):
        layer.load_state_dict({"pweight": state["pweight"]})


def test_changes_of_planes_replace_parameters() -> None:
    _, layer, x = layer_of("bias", 8, 8)
    before, old = layer(x), layer.pweight
    layer.change_planes_(requantize).change_planes_(prune)
    assert layer.pweight is not old and torch.allclose(layer(x), before, atol=1e-5)
    with pytest.raises(ValueError, match="to_bits_"):
        layer.to_finetune_().change_planes_(prune)


def test_dead_layers() -> None:
    _, layer, x = layer_of("bias", 0, 3)
    assert layer.bits() == 0 and layer.pweight.shape[-1] == 1 and layer.weight_codes().grid.bits == 0
    assert torch.equal(layer(x), layer.effective_bias().reshape(1, -1, 1, 1).expand_as(layer(x)))
    assert layer.to_finetune_().bits() == 0 and layer.to_bits_().bits() == 0


@pytest.mark.parametrize("layer", [StdConv2d(3, 4, 3), nn.MultiheadAttention(4, 2).out_proj])
def test_layers_whose_weight_is_used_otherwise_are_refused(layer: Any) -> None:
    kind: Any = BitConv2d if isinstance(layer, nn.Conv2d) else BitLinear
    with pytest.raises(InputError, match="exclude it"):
        kind(layer, 4)


def test_weights_that_are_not_finite_are_refused() -> None:
    linear = nn.Linear(2, 2)
    linear.weight.data[0, 0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        BitLinear(linear, 4)
