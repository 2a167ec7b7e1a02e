"""CIFAR ResNet-18 under quantization against the original program: policy, ranges, scales, codes, features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.models.create import create_model
from lowbit.quant.bitwidths import activations, quantize_uniform_, set_bits_, set_mode_
from lowbit.quant.calibrate import calibrate_
from lowbit.quant.layers import quantized_layers
from ssql.bit_policy import BitPolicy, derive_policy, short

Net = tuple[nn.Module, BitPolicy, str]


def setting(name: str) -> tuple[int, int]:
    """(w, a) of "w4a4"."""
    w, _, a = name.removeprefix("w").partition("a")
    return int(w), int(a)


@pytest.fixture(scope="module", params=["sin", "mix"])
def net(request: pytest.FixtureRequest, recorded: Any, filled: Callable[..., nn.Module]) -> Net:
    arrays, how = recorded["resnet18"], request.param
    model = filled(create_model("cifar_resnet18"), recorded, how).eval()
    assert torch.allclose(model.conv1.weight.flatten()[:32], arrays[f"r18_{how}_fill_conv1_head"], rtol=1e-6)
    if how == "mix":
        start = 0
        for name, size in recorded.json("resnet18_layers")["bn_order"]:
            norm, part = model.get_submodule(name), slice(start, start + size)
            norm.running_mean.copy_(arrays["r18_mix_bn_mean"][part])
            norm.running_var.copy_(arrays["r18_mix_bn_var"][part])
            start += size
    policy = derive_policy(model)
    quantize_uniform_(model, policy)
    calibrate_(model, [recorded.pictures("calibration_pictures")])
    return model, policy, how


def relative(ours: Tensor, theirs: Tensor) -> float:
    """L2 distance over the length of `theirs` (which is 0 for a dead net)."""
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-20))


def test_the_policy_is_the_authors(recorded: Any) -> None:
    layers = recorded.json("resnet18_layers")
    policy = derive_policy(create_model("cifar_resnet18"))
    assert sorted(policy.points) == sorted(layers["activation_quantized_layers"])
    assert {short(n) for n, pin in policy.weights.items() if pin != 0} == set(layers["weight_quantized_layers"])
    for name, bits in layers["bits"].items():
        w, a = (0, 0) if name == "float" else setting(name)
        assert policy.table(w, a, keep_pins=True) == bits, name


def test_ranges(net: Net, recorded: Any) -> None:
    model, policy, how = net
    arrays, order = recorded["resnet18"], recorded.json("resnet18_layers")["activation_quantized_layers"]
    found = {policy.follows[name]: activation.observer for name, activation in activations(model).items()}
    low, high = (torch.stack([getattr(found[name], end) for name in order]) for end in ("low", "high"))
    assert torch.equal(low, arrays[f"r18_{how}_act_min"])
    assert relative(high, arrays[f"r18_{how}_act_max"]) < 1e-4


def test_weight_scales_and_codes(net: Net, recorded: Any) -> None:
    model, _, how = net
    arrays, order = recorded["resnet18"], recorded.json("resnet18_layers")["weight_quantized_layers"]
    set_mode_(set_bits_(model, 4, 4), "quantized")
    layers = {short(name): layer for name, layer in quantized_layers(model)}
    codes = [layers[name].weight_codes() for name in order]
    assert [code.grid.bits for code in codes] == [8] + [4] * (len(order) - 1)
    assert torch.equal(torch.cat([code.grid.scale.flatten() for code in codes]), arrays[f"r18_{how}_wscale_w4a4"])
    sums = torch.tensor([float(code.codes.abs().sum()) for code in codes])
    assert torch.equal(sums.double(), arrays[f"r18_{how}_wcode_sum_w4a4"])


def test_features(net: Net, recorded: Any) -> None:
    """Exact with the recording's convolutions; with others single codes flip, and the README gives how far."""
    model, _, how = net
    arrays, x = recorded["resnet18"], recorded.pictures("feature_pictures")
    flips = {"w8a8": 0.02, "w0a0": 0.02} if how == "mix" else {"w8a8": 5e-3, "w0a0": 5e-3, "w4a4": 8e-3}
    for name in ("float", "w0a0", "w8a8", "w4a4", "w3a3", "w2a4"):
        set_mode_(model, "float" if name == "float" else "quantized")
        if name != "float":
            set_bits_(model, *setting(name), keep_pins=True)
        with torch.no_grad():
            features = model.forward_head(model.forward_features(x), pre_logits=True)
        limit = 1e-4 if name == "float" else flips.get(name, 0.25)
        assert relative(features, arrays[f"r18_{how}_feat_{name}"]) < limit, name
        assert relative(model.fc(features).detach(), arrays[f"r18_{how}_logits_{name}"]) < limit, name


def test_full_precision_means_full_precision(net: Net, recorded: Any) -> None:
    model, x = net[0], recorded.pictures("feature_pictures")
    with torch.no_grad():
        plain = set_mode_(model, "float")(x)
        assert torch.equal(set_mode_(set_bits_(model, 0, 0), "quantized")(x), plain)
        assert not torch.equal(set_bits_(model, 0, 0, keep_pins=True)(x), plain)
