"""Wrapped nets: keys, modes, bits, ranges, the layer protocol, cost."""

import pytest
import torch
import torch.distributed as dist
from timm.layers import Conv2dSame, StdConv2d
from torch import nn

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.quant.bitwidths import (
    UniformWeight,
    activations,
    in_mode,
    quantize_uniform_,
    set_bits_,
    set_mode_,
    weight_quantizers,
)
from lowbit.quant.calibrate import calibrate_, reset_ranges_, sync_ranges_, uncalibrated
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.layers import QuantizedLayer, quantized_layers, to_plain_
from lowbit.quant.trace import trace
from lowbit.quant.uniform import WeightConfig, quantize_weight
from ssql.bit_policy import BitPolicy, derive_policy

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def plain(classes: int = 5) -> WideCifarResNet:
    torch.manual_seed(0)
    return WideCifarResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=classes).eval()


def wrapped() -> nn.Module:
    net = plain()
    return quantize_uniform_(net, derive_policy(net, (3, 8, 8)))


def test_the_float_net_s_keys_and_parameters_stay() -> None:
    net = plain()
    before, keys = dict(net.named_parameters()), list(net.state_dict())
    quantize_uniform_(net, derive_policy(net, (3, 8, 8)))
    assert all(parameter is before[name] for name, parameter in net.named_parameters())
    extra = [key for key in net.state_dict() if key not in keys]
    assert [key for key in net.state_dict() if key in keys] == keys
    assert len(extra) == 3 * 5 and all(key.split(".")[-2] == "observer" for key in extra)
    assert isinstance(net.conv1, QuantConv2d) and type(net.fc) is nn.Linear


def test_modes() -> None:
    """Float and observing passes are the float net's; ranges are set by observing alone; quantized differs."""
    net, reference = wrapped(), plain()(X)
    assert torch.equal(net(X), reference)
    assert len(uncalibrated(net)) == 5
    set_bits_(net, 4, 4)
    assert torch.equal(net(X), reference), "mode float"
    with in_mode(net, "observe"):
        assert torch.equal(net(X), reference)
    assert not uncalibrated(net) and torch.equal(net(X), reference), "the mode came back"
    first = activations(net)["relu"].observer
    assert first.low == 0 and first.high == plain().bn1(plain().conv1(X)).amax()
    with in_mode(net, "quantized"):
        four = net(X)
        set_bits_(net, torch.tensor(2), torch.tensor(4))
        two = net(X)
    assert not torch.equal(four, reference) and not torch.equal(four, two)
    with pytest.raises(ValueError, match="observe"):
        set_mode_(net, "quantised")


def test_bits_reach_all_but_pinned_places() -> None:
    net = wrapped()
    set_bits_(net, 3, 5)
    weights = {name: int(layer.weight_quantizer.w_bits) for name, layer in quantized_layers(net)}  # type: ignore[attr-defined]
    assert weights.pop("conv1") == 8 and set(weights.values()) == {3}
    acts = {name: int(activation.a_bits) for name, activation in activations(net).items()}
    assert acts.pop("relu") == 8 and set(acts.values()) == {5}
    set_bits_(net, torch.tensor(0), torch.tensor(0))
    assert not any(int(q.w_bits) for q in weight_quantizers(net)) and not any(
        int(a.a_bits) for a in activations(net).values()
    )
    set_bits_(net, 0, 4, keep_pins=True)
    assert net.conv1.weight_quantizer.w_bits == 8 and net.layer1[0].conv1.weight_quantizer.w_bits == 0
    for w, a in ((1, 4), (4, 17)):
        with pytest.raises(InputError, match="bits"):
            set_bits_(net, w, a)


def test_bits_stay_out_of_the_state_dict_and_ranges_come_back() -> None:
    net, other = wrapped(), wrapped()
    assert calibrate_(net, [X[:2], X[2:]]) == 2
    other.load_state_dict(net.state_dict())
    assert not uncalibrated(other) and not any("bits" in key for key in net.state_dict())
    for one in (net, other):
        set_mode_(set_bits_(one, 2, 4), "quantized")
    assert torch.equal(net(X), other(X))


def test_calibration_restores_modes_and_begins_anew() -> None:
    net = wrapped().train()
    net.layer1.eval()
    calibrate_(net, [X * 100])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    calibrate_(net, [X])
    assert net.training and not net.layer1.training
    assert activations(net)["relu"].observer.high < before["relu.observer.high"]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items() if "observer" not in k)
    with pytest.raises(InputError, match="no picture"):
        calibrate_(net, [])


def test_gradients_reach_every_parameter_of_a_quantized_pass() -> None:
    net = wrapped().train()
    calibrate_(net, [X])
    set_mode_(set_bits_(net, 2, 4), "quantized")
    net(X).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_the_layer_protocol() -> None:
    net = wrapped()
    set_mode_(set_bits_(net, 3, 4), "quantized")
    layers = dict(quantized_layers(net))
    assert list(layers) == [n for n, m in net.named_modules() if isinstance(m, QuantConv2d)] and len(layers) == 6
    for name, layer in layers.items():
        assert isinstance(layer, QuantizedLayer)
        codes, own = layer.weight_codes(), layer.weight_quantizer(layer.weight)  # type: ignore[attr-defined]
        assert codes is not None and torch.equal(codes.values(), own) and codes.grid.signed
        assert codes.grid.bits == (8 if name == "conv1" else 3) and layer.bias_codes() is None
    expected = net(X)
    set_bits_(net, 0, 0)
    assert layers["conv1"].weight_codes() is None, "float"
    set_bits_(net, 3, 0)
    assert not torch.equal(net(X), plain()(X)) and torch.equal(to_plain_(net)(X), net(X)) and expected.shape == (4, 5)
    assert not list(quantized_layers(net))


def test_cost_sees_bits_of_weights_and_inputs() -> None:
    net = wrapped()
    calibrate_(net, [X])
    set_mode_(set_bits_(net, 3, 4), "quantized")
    rows = {row.name: row for row in cost(net, (3, 8, 8)).layers}
    assert (rows["conv1"].bits, rows["conv1"].input_bits) == (8, None)
    assert (rows["layer1.0.conv1"].bits, rows["layer1.0.conv1"].input_bits) == (3, 8)
    assert (rows["layer2.0.conv2"].bits, rows["layer2.0.conv2"].input_bits) == (3, 4)
    assert rows["fc"].bits == 32
    grid, observer = trace(net, (3, 8, 8))["layer1.0.conv1"].input_grid, activations(net)["relu"].observer
    assert grid is not None and not grid.signed and grid.zero_point == 0
    assert float(grid.scale) * 255 == pytest.approx(float(observer.high)), "8 bits"


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, 2, 1, groups=2, bias=True),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        Conv2dSame(4, 6, 3, 2),
        nn.Linear(8, 5),
    ],
)
def test_any_ordinary_layer(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 7, 8)
    expected = layer(x)
    kind = QuantLinear if isinstance(layer, nn.Linear) else QuantConv2d
    ours = kind(layer, UniformWeight(WeightConfig()))  # type: ignore[arg-type]
    assert torch.equal(ours(x), expected)
    set_mode_(set_bits_(ours, 3, 0), "quantized")
    plain_layer = ours.to_plain()
    assert type(plain_layer) is type(layer) and torch.equal(plain_layer(x), ours(x))
    assert torch.equal(plain_layer.weight, quantize_weight(layer.weight, torch.tensor(3)))  # type: ignore[arg-type]


def test_layers_that_bits_cannot_follow_are_named() -> None:
    net = nn.Sequential(StdConv2d(3, 4, 3))
    with pytest.raises(InputError, match="layer 0: StdConv2d changes its weight"):
        quantize_uniform_(net, BitPolicy({"0": None}, {}, {}))
    attention = nn.MultiheadAttention(4, 1)
    with pytest.raises(InputError, match=r"layer out_proj: .*is not used as an ordinary"):
        quantize_uniform_(attention, BitPolicy({"out_proj": 8}, {}, {}))


def test_double_precision_stays_double() -> None:
    net = plain().double()
    quantize_uniform_(net, derive_policy(net, (3, 8, 8)))
    calibrate_(net, [X.double()])
    assert activations(net)["relu"].observer.high == plain().double().bn1(plain().double().conv1(X.double())).amax()
    assert set_mode_(set_bits_(net, 4, 4), "quantized")(X.double()).dtype == torch.float64


def test_ranges_of_all_ranks_are_joined_by_one_collective(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def reduce(ends: torch.Tensor, op: object) -> None:
        calls.append(op)
        ends.clamp_(min=1.5)  # the other rank saw [-1.5, 1.5] everywhere

    net = wrapped()
    calibrate_(net, [X])
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", reduce)
    high = {name: float(a.observer.high) for name, a in activations(net).items()}
    sync_ranges_(net)
    assert calls == [dist.ReduceOp.MAX]
    for name, activation in activations(net).items():
        assert activation.observer.low == -1.5 and float(activation.observer.high) == max(high[name], 1.5)
    assert len(uncalibrated(reset_ranges_(net))) == 5
