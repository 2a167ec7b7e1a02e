"""Whole nets into bits and back: counts of the paper's net, widths, any timm classifier, errors."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from bsq.activation import quantize_bsq_activations_
from bsq.compression import size
from bsq.network import (
    bit_layers,
    check_widths,
    coverable,
    load_bits_,
    nbit_dict,
    ones_per_plane,
    prune_,
    requantize_,
    to_bit_form_,
    to_bits_,
    to_finetune_,
)
from bsq.planes import encode
from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.quant.layers import quantizers, to_plain_
from lowbit.quant.places import quantized_activations


def resnet(depth: int = 8) -> nn.Module:
    torch.manual_seed(0)
    return create_model(f"cifar_resnet{depth}_1x1").eval()


def test_counts_of_the_paper_s_net(recorded: Any) -> None:
    model = to_bits_(resnet(20), 8)
    found = size(model)
    assert (found.weights, found.bits, found.compression) == (268_346, 2_146_768, 4.0)
    assert sum(p.numel() for p in model.parameters()) == 4_297_685
    assert len(bit_layers(model)) == 20 and not any("downsample" in name for name in bit_layers(model))
    assert found.bits_signed == 9 * 268_346 and found.float_values == 2_560 + 2 * 1_568 and found.scales == 21
    assert 3 < found.compression_all < found.compression_signed < 4


@pytest.mark.parametrize(("form", "change"), [("bin8", None), ("finetune8", to_finetune_), ("float", to_plain_)])
def test_keys_are_the_authors(recorded: Any, form: str, change: Any) -> None:
    model = to_bits_(resnet(20), 8)
    state = (change(model) if change else model).state_dict()
    theirs = {key.removeprefix("module."): tuple(shape) for key, shape, _ in recorded.json("keys")[form]}
    assert {key: tuple(value.shape) for key, value in state.items()} == theirs
    assert list(state) == list(theirs) or form == "float"
    quantize_bsq_activations_(model, 3)
    alphas = {f"module.{key}" for key in model.state_dict() if key.endswith("alpha")}
    assert alphas == {key for key, _, _ in recorded.json("keys")["pact_extra"]}


def test_activations_of_the_authors() -> None:
    for bits, function in ((8, "relu6"), (4, "relu6"), (3, "pact"), (0, "pact")):
        found = quantizers(quantize_bsq_activations_(resnet(20), bits))
        assert len(found) == 18 and {q.config.function for q in found.values()} == {function}
        assert "relu" not in found and all(q.config.bits == bits for q in found.values())
    unclipped = quantizers(quantize_bsq_activations_(resnet(20), 4, clip="none"))
    assert {q.config.function for q in unclipped.values()} == {"relu"}
    with pytest.raises(InputError, match="clip '7'"):
        quantize_bsq_activations_(resnet(), 4, clip="7")


@pytest.mark.parametrize(("arch", "found", "of"), [("test_vit", 6, 6), ("test_efficientnet", 10, 11)])
def test_activations_of_nets_that_the_authors_never_had(arch: str, found: int, of: int) -> None:
    model = quantize_bsq_activations_(create_model(arch, num_classes=2), 4)
    assert quantized_activations(model) == (found, of) == (len(quantizers(model)), of)
    for quantizer in quantizers(model).values():
        grid, y = quantizer.grid(), quantizer(torch.linspace(-3, 3, 1000))
        assert grid is not None and grid.signed and y.min() < 0 and len(y.unique()) <= 31


def test_17_to_32_bits_are_floats_behind_the_clip_of_many_bits() -> None:
    torch.manual_seed(0)
    model, x = resnet(8).eval(), torch.randn(4, 3, 32, 32)
    for bits in (17, 32):
        floats = quantize_bsq_activations_(deepcopy(model), bits)
        assert {(q.config.bits, q.config.function) for q in quantizers(floats).values()} == {(0, "relu6")}
        assert quantized_activations(floats) == (0, 7)
        rounded = quantize_bsq_activations_(deepcopy(model), 16)
        assert torch.allclose(floats(x), rounded(x), atol=1e-3) and not torch.equal(floats(x), rounded(x))
    with pytest.raises(InputError, match="33"):
        quantize_bsq_activations_(model, 33)


def test_bits_for_no_activation_are_refused() -> None:
    for net in (nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU())):
        with pytest.raises(InputError, match=r"--act 4: none of its [01] activation.* --act 0"):
            quantize_bsq_activations_(net, 4)
        for bits in (0, 32):
            assert quantized_activations(quantize_bsq_activations_(net, bits))[0] == 0


def rounded(model: nn.Module, bits: int) -> nn.Module:
    """The plain net with its weights rounded by the formula, in double precision."""
    model = deepcopy(model)
    for module in model.modules():
        for tensor in (module.weight, module.bias) if isinstance(module, nn.Conv2d | nn.Linear) else ():
            if tensor is not None:
                code, scale = encode(tensor, bits)
                tensor.data = (code.double() * scale.double() / (2**bits - 1)).to(tensor.dtype)
    return model


@pytest.mark.parametrize(
    ("arch", "pixels", "layers"),
    [("tf_efficientnet_b0", 32, 82), ("vit_tiny_patch16_224", 224, 50)],  # resnet50, inception_v3: test_any_net
)
def test_any_timm_classifier(arch: str, pixels: int, layers: int) -> None:
    """Bottlenecks, grouped and SAME convolutions, biases; every Conv2d and Linear is covered; act 0 changes nothing."""
    torch.manual_seed(0)
    model = create_model(arch, num_classes=4).eval()
    plain = rounded(model, 8)
    quantize_bsq_activations_(to_bits_(model, 8), 0)
    assert len(bit_layers(model)) == layers
    assert not any(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules())
    x = torch.randn(2, 3, pixels, pixels)
    with torch.no_grad():
        ours, theirs = model(x), plain(x)
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max().clamp(min=1)


def test_include_and_exclude() -> None:
    assert "layer2.0.downsample.0" in coverable(resnet(), exclude=())
    assert coverable(resnet(), include=("layer1.*", "fc")) == ["layer1.0.conv1", "layer1.0.conv2", "fc"]
    model = to_bits_(create_model("resnetv2_50x1_bit", num_classes=2), 8, include=("head.*",))
    assert len(bit_layers(model)) == 1
    with pytest.raises(InputError, match=r"layer stem\.conv: StdConv2d"):
        to_bits_(create_model("resnetv2_50x1_bit", num_classes=2), 8)
    with pytest.raises(InputError, match="nothing"):
        to_bits_(resnet(), 8, exclude=("nothing",))


def test_forms_requantisation_and_pruning_keep_the_net() -> None:
    model, x = to_bits_(resnet(), 8), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(x)
        requantize_(prune_(model), max_bits=10)
        assert torch.equal(model(x), before), "fresh bits are unchanged"
        assert torch.allclose(to_finetune_(model)(x), before, atol=1e-5)
        assert torch.allclose(to_bit_form_(model)(x), before, atol=1e-5)
        assert {v["weight"][0] > 0 for v in ones_per_plane(model).values()} == {True}
        assert torch.equal(to_plain_(deepcopy(model))(x), model(x))


def test_widths_go_out_and_in() -> None:
    given = {"conv1": [5, 0], "layer2.0.conv1": [0, 0], "fc": [3, 2]}
    model = to_bits_(resnet(), 4, widths=given)
    found = nbit_dict(model)
    assert found == {name: given.get(name, [4, 0]) for name in found}
    for form in ("bit", "finetune"):
        other = to_bits_(resnet(), 8)
        load_bits_(other, model.state_dict(), found)
        assert nbit_dict(other) == found and {layer.form for layer in bit_layers(other).values()} == {form}
        assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))
        to_finetune_(model)


def test_dead_layers_count_0_and_stay_in_memory() -> None:
    model = to_bits_(resnet(), 2, widths={"layer1.0.conv1": [0, 0]})
    alive = to_bits_(resnet(), 2)
    assert size(alive).bits - size(model).bits == 2 * 16 * 16 * 9
    assert model.layer1[0].conv1.pweight.shape[-1] == 1


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ({"nowhere": [3, 0]}, "'nowhere', which is not a converted layer"),
        ({"conv1": [17, 0]}, "bits of conv1"),
        ({"conv1": [-1, 0]}, "bits of conv1"),
        ({"conv1": 3}, "bits of conv1"),
        ({"conv1": [3.0, 0]}, "bits of conv1"),
        ([1, 2], "is a list"),
    ],
)
def test_wrong_widths(widths: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_bits_(resnet(), 4, widths=widths)


def test_wrong_number_of_bits_is_told_before_the_net_changes() -> None:
    model = resnet()
    for bits in (0, 17):
        with pytest.raises(InputError, match="--Nbits"):
            to_bits_(model, bits)
    assert not bit_layers(model) and check_widths({"a": (1, 2)}) == {"a": (1, 2)}


def test_checkpoints_that_do_not_fit() -> None:
    model, other = to_bits_(resnet(), 4), to_bits_(resnet(14), 4)
    with pytest.raises(InputError, match="Nbit_dict does not fit"):
        load_bits_(model, other.state_dict(), nbit_dict(other))
    said = nbit_dict(model) | {"conv1": [3, 0]}
    with pytest.raises(InputError, match=r"conv1 holds \[4, 0\] bits"):
        load_bits_(model, model.state_dict(), said)
    broken = {key: value for key, value in model.state_dict().items() if key != "bn1.weight"}
    with pytest.raises(InputError, match=r"do not fit the net that it names: .*Missing key.*bn1\.weight"):
        load_bits_(model, broken, nbit_dict(model))
