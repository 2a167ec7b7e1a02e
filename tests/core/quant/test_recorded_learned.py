"""Learned quantizers against recorded numbers: outputs, gradients, starts; whole nets in float64."""

import re
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.quant.conv import QuantConv2d
from lowbit.quant.ewgs import EwgsInput, EwgsWeight
from lowbit.quant.initialize import initialize_
from lowbit.quant.layers import quantizers
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import (
    input_quantizer,
    layer_points,
    learned_layers,
    quantize_learned_,
    weight_quantizer,
)
from lowbit.quant.rounding import even_levels, quantize_evenly

CASES = [*(("relu", levels) for levels in (2, 4, 8, 16, 256)), *((c, n) for c in ("signed", "moved") for n in (4, 16))]


def close(found: Tensor | None, expected: Tensor, relative: float) -> None:
    assert found is not None
    error = float((found.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-30))
    assert found.shape == expected.shape and error < relative, error


def bits_of(levels: int) -> int:
    return levels.bit_length() - 1


def ewgs_layer(arrays: dict[str, Tensor], case: str, levels: int, delta: float) -> Any:
    """The recorded layer in float64, its five parameters set."""
    bias = arrays["bias"] if case == "moved" else None
    conv = nn.Conv2d(4, 8, 3, 2 if case == "moved" else 1, 1, bias=bias is not None).double()
    with torch.no_grad():
        conv.weight.copy_(arrays["weight"])
        if bias is not None and conv.bias is not None:
            conv.bias.copy_(bias)
    config = LearnedConfig("ewgs" if delta else "ste", bits_of(levels), delta)
    return QuantConv2d(conv, EwgsWeight(config).double(), EwgsInput(config).double())  # type: ignore[arg-type]


def parameters(layer: Any) -> list[Tensor]:
    weight, given = layer.weight_quantizer, layer.input_quantizer
    ends = (weight.interval.low, weight.interval.high, given.interval.low, given.interval.high)
    return [*ends, weight.output_scale]


@pytest.mark.parametrize(("case", "levels"), CASES)
def test_intervals(learned_numbers: Any, case: str, levels: int) -> None:
    arrays = learned_numbers["qconv"]
    if f"{case}.L{levels}.qparams" not in arrays:
        pytest.skip("this case is in the whole recording alone")
    x = arrays["x_relu" if case == "relu" else "x_signed"].double()
    name = f"{case}.L{levels}"
    for delta in ("0", "0.001", "0.1"):
        if f"{name}.d{delta}.g_weight" not in arrays:
            continue
        layer, leaf = ewgs_layer(arrays, case, levels, float(delta)), x.clone().requires_grad_()
        if case == "moved":
            for own, value in zip(parameters(layer), arrays[f"{name}.qparams"], strict=True):
                own.data.copy_(value)
        else:
            initialize_(nn.Sequential(layer), [x])
        close(torch.stack(parameters(layer)), arrays[f"{name}.qparams"].double(), 1e-6)
        y = layer(leaf)
        close(y, arrays[f"{name}.out"].double(), 1e-6)
        close(layer.input_quantizer(x), arrays[f"{name}.x_hat"].double(), 1e-6)
        scale = layer.weight_quantizer.output_scale.abs()
        close(layer._weight() / scale, arrays[f"{name}.w_hat"].double(), 1e-6)
        y.backward(arrays["g_stride2" if case == "moved" else "g_stride1"].double())
        at = f"{name}.d{delta}"
        close(layer.weight.grad, arrays[f"{at}.g_weight"].double(), 2e-6)
        close(leaf.grad, arrays[f"{at}.g_input"].double(), 2e-6)
        grads = torch.stack([p.grad for p in parameters(layer)])  # type: ignore[misc]
        close(grads, arrays[f"{at}.g_qparams"].double(), 5e-6)
        if case == "moved":
            close(layer.bias.grad, arrays[f"{at}.g_bias"].double(), 1e-6)


@pytest.mark.parametrize("levels", [2, 4, 16, 256])
def test_the_rounding_by_itself_ties_included(learned_numbers: Any, levels: int) -> None:
    arrays = learned_numbers["qconv"]
    of = even_levels(bits_of(levels))
    zero, rate = torch.zeros(()), torch.tensor(levels - 1.0)
    for delta in ("0", "0.001", "0.1"):
        x = arrays["disc.x"].clone().requires_grad_()
        y = quantize_evenly(x, 1 / rate, of, zero, rate, torch.tensor(float(delta)) if delta != "0" else None)
        y.backward(arrays["disc.g"])
        close(y, arrays[f"disc.L{levels}.out"], 3e-7)
        close(x.grad, arrays[f"disc.L{levels}.d{delta}.g"], 3e-7)


def inputs(arrays: dict[str, Tensor], kind: str) -> tuple[Tensor, Tensor]:
    return (arrays["w"], arrays["g_w"]) if kind == "w" else (arrays[f"x_{kind}"], arrays["g_x"])


def released(quantizer: str, kind: str, bits: int) -> Any:
    config = LearnedConfig(quantizer, bits, released=True)
    return weight_quantizer(config) if kind == "w" else input_quantizer(config)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["w", "relu", "signed"])
def test_released_steps(learned_numbers: Any, kind: str, bits: int) -> None:
    arrays = learned_numbers["mqbench"]
    x, g = inputs(arrays, kind)
    for case, factor in (("s1", 1.0), ("s0.5", 0.5), ("s2", 2.0), ("neg", -0.75)):
        at = f"lsq.{kind}.b{bits}"
        if f"{at}.{case}.out" not in arrays:
            continue
        module, leaf = released("lsq", kind, bits), x.clone().requires_grad_()
        module.initialize_(x)
        close(module.of.step.detach()[None], arrays[f"{at}.scale0"], 1e-6)
        module.of.step.data.mul_(factor)
        y = module(leaf)
        close(y, arrays[f"{at}.{case}.out"], 1e-6)
        y.backward(g)
        close(leaf.grad, arrays[f"{at}.{case}.g_in"], 1e-6)
        # the program makes a negative step positive in place; here its absolute value is taken
        sign = 1 if factor > 0 else -1
        close(sign * module.of.step.grad[None], arrays[f"{at}.{case}.g_scale"], 1e-4)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["w", "relu", "signed"])
def test_released_tangents(learned_numbers: Any, kind: str, bits: int) -> None:
    arrays, at = learned_numbers["mqbench"], f"dorefa.{kind}.b{bits}"
    if f"{at}.out" not in arrays:
        pytest.skip("these bits are in the whole recording alone")
    x, g = inputs(arrays, kind)
    module, leaf = released("dorefa", kind, bits), x.clone().requires_grad_()
    if kind != "w":
        module.initialize_(x)
    y = module(leaf)
    y.backward(g)
    tie = x.abs() == x.abs().max()  # the largest lies exactly between two codes
    assert leaf.grad is not None
    expected, slope = arrays[f"{at}.out"], arrays[f"{at}.g_in"]
    close(y[~tie], expected[~tie], 1e-5)
    close(leaf.grad[~tie], slope[~tie], 2e-5)
    if kind != "w":
        first = module(x[:2])
        same = x[:2].abs() != x[:2].abs().max()
        close(first[same], arrays[f"{at}.out_first2"][same], 1e-5)
        assert not torch.equal(module(torch.cat([x[:2] / 9, x[2:]]))[:2], module(x[:2] / 9)), "it depends on the batch"


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", ["relu", "signed"])
@pytest.mark.parametrize("alpha", [6, 0.8])
def test_clipping_values(learned_numbers: Any, kind: str, bits: int, alpha: float) -> None:
    arrays, at = learned_numbers["mqbench"], f"pact.{kind}.b{bits}.a{alpha}"
    if f"{at}.released.out" not in arrays:
        pytest.skip("these bits are in the whole recording alone")
    x, g = inputs(arrays, kind)
    config = LearnedConfig("pact", bits)
    for name, module in (
        ("released", released("pact", kind, bits)),
        ("formula_unsigned" if kind == "relu" else "formula_signed", input_quantizer(config)),
    ):
        module.initialize_(x)
        module.alpha.data.fill_(alpha)
        leaf = x.clone().requires_grad_()
        y = module(leaf)
        y.backward(g)
        close(y, arrays[f"{at}.{name}.out"], 1e-6)
        close(leaf.grad, arrays[f"{at}.{name}.g_in"], 1e-6)
        if name != "released":
            expected = arrays[f"{at}.{name}.g_alpha"].float()
            assert abs(float(module.alpha.grad) - float(expected)) < 1e-4 * max(1.0, abs(float(expected)))
        else:
            assert not list(module.parameters()), "frozen"


@pytest.fixture(scope="module")
def calibrated(learned_numbers: Any) -> nn.Module:
    """The filled ResNet-20 with the recorded statistics, float64."""
    net = create_model("cifar_resnet20_pad").double()
    learned_numbers.fill_(net, "resnet20_fp", {"linear.": "fc."})
    state = net.state_dict()
    for key, value in learned_numbers["nets"].items():
        if key.removeprefix("cal.") in state:
            state[key.removeprefix("cal.")].copy_(value)
    return net


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_a_net_from_its_start(learned_numbers: Any, calibrated: nn.Module, bits: int) -> None:
    arrays, at = learned_numbers["nets"], f"quant.W{bits}A{bits}"
    net = deepcopy(calibrated).train()
    config = LearnedConfig("ste", bits)
    quantize_learned_(net, layer_points(net), lambda name: (config, config))
    x = learned_numbers.pictures((8, 3, 32, 32), 2)
    initialize_(net, [x])
    found = torch.stack([torch.stack(parameters(layer)) for layer in learned_layers(net).values()])
    close(found, arrays[f"{at}.qparams"].double(), 2e-2)  # float32, some values rounded otherwise
    with torch.no_grad():
        close(deepcopy(net).eval()(learned_numbers.pictures((2, 3, 32, 32), 1)), arrays[f"{at}.f64.eval_logits2"], 1e-9)
        close(net(x), arrays[f"{at}.f64.train_logits8"], 1e-9)


@pytest.fixture(scope="module")
def filled(learned_numbers: Any) -> nn.Module:
    """The filled ResNet-18 of 200 classes."""
    net = create_model("resnet18", num_classes=200)
    return learned_numbers.fill_(net, "tiny_resnet18_imagenet", {}).train()  # type: ignore[no-any-return]


def read_by(key: str) -> str:
    """What has a recorded input quantizer here, which is called after the module in front of it."""
    if key.startswith("maxpool"):
        return "layer1.0"
    stage, block, second = re.fullmatch(r"layer(\d)_(\d)_relu(_1)?_post.*", key).groups()  # type: ignore[union-attr]
    if second is None:
        return f"layer{stage}.{block}.conv2"
    return f"layer{stage}.1" if block == "0" else f"layer{int(stage) + 1}.0"


def softened(x: Tensor) -> Tensor:
    """The quantizer of first and last layer, of "32 bits", by PACT and DoReFa; LSQ's is nearly the identity."""
    return torch.tanh(x) / (torch.tanh(x).abs().max() + 1e-5)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("quantizer", ["pact", "lsq", "dorefa"])
def test_released_nets(learned_numbers: Any, filled: nn.Module, quantizer: str, bits: int) -> None:
    """Steps, from float inputs, and logits; that of DoReFa's inputs is the least value but 0.

    With a quantizer for each layer and float shortcuts, logits differ by 0.4 (LSQ, 8 bits) to 30.
    """
    net, config = deepcopy(filled), LearnedConfig(quantizer, bits, released=True)
    for end in (net.conv1, net.fc):
        if quantizer != "lsq":
            end.weight.data = softened(end.weight.data)  # type: ignore[union-attr, operator, arg-type]
    quantize_learned_(net, layer_points(net), lambda name: (config, config))
    for end in (net.conv1, net.fc):
        if quantizer == "dorefa":
            end.register_forward_pre_hook(lambda end, args: softened(args[0]))  # type: ignore[union-attr]
    given, inputs = {name.rpartition(".")[0]: module for name, module in quantizers(net).items()}, dict[str, Tensor]()
    for name, module in given.items():
        module.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0]}))  # type: ignore[attr-defined]
    x, arrays = learned_numbers.pictures((4, 3, 64, 64)).float(), learned_numbers["mqnets"]
    initialize_(net, [x])
    found: dict[str, Any] = {}
    for name, module in given.items():
        y = module(inputs[name])  # type: ignore[operator]
        found[name] = y[y > 0].min() if quantizer == "dorefa" else module.grid().scale  # type: ignore[union-attr]
    for name, layer in learned_layers(net).items():
        codes = layer.weight_codes()
        assert codes is not None
        found[f"{name}.weight_fake_quant.scale"] = codes.grid.scale
    at = f"resnet18.{quantizer}.b{bits}"
    names = learned_numbers.json("keys")[f"resnet18_{quantizer}_scale_names"]
    ours = [key for key in names if not key.startswith(("x_", "conv1.", "flatten_", "fc."))]
    assert len(names) == 39 and len(ours) == 35 and (len(given), len(learned_layers(net))) == (16, 19)
    for key, expected in zip(names, arrays[f"{at}.scales"], strict=True):
        if key in ours:
            step = found[key if key in found else read_by(key)]
            assert float(step) == pytest.approx(float(expected), rel=1e-6), key
    with torch.no_grad():
        error = float((net(x) - arrays[f"{at}.train_logits"]).abs().max())
    assert error < max(1e-4, 1.1 * float(arrays[f"{at}.noise_dev"].max())), "where rounding flips, noise does so, too"


def test_one_released_quantizer_at_an_entry() -> None:
    """Of what a block and its layers receive, as it comes; not of a ReLU in place, nor of another tensor."""

    class Block(nn.Module):
        def __init__(self, first: nn.Module) -> None:
            super().__init__()
            self.first, self.conv, self.down = first, nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(self.first(x)) + self.down(x) + x
            return y

    def quantized(released: bool, bits: int = 2) -> nn.Sequential:
        net = nn.Sequential(Block(nn.Identity()), Block(nn.ReLU(inplace=True)), Block(nn.Tanh()))
        configs = [LearnedConfig("pact", number, released=released) for number in (2, bits)]
        points = layer_points(net, ["*"])
        quantize_learned_(net, points, lambda name: (configs[0], configs[name == "0.down"]), (3, 4, 4))
        return initialize_(net, [x])  # type: ignore[return-value]

    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    net = quantized(True)
    layers = {"0": [], "1": ["conv", "down"], "2": ["conv"]}  # type: dict[str, list[str]]
    own = [f"{block}.{layer}.input_quantizer" for block, of in layers.items() for layer in of]
    assert set(quantizers(net)) == {"0.input_quantizer", "2.input_quantizer", *own}
    assert len(quantizers(quantized(False))) == 6
    with torch.no_grad():
        assert torch.equal(net[0](x), net[0](net[0].input_quantizer(x))), "the shortcut reads it, too"  # type: ignore[operator]
    with pytest.raises(InputError, match=r"layer 0.down: what 0 receives has one"):
        quantized(True, 3)


@pytest.mark.parametrize(
    ("name", "which"),
    [("cifar_resnet20_pad", "resnet20_quant"), ("cifar_resnet32_pad", "resnet32_quant"),
     ("cifar_vgg8", "vgg8_bn_quant"), ("cifar_vgg13", "vgg13_bn_quant"),
     ("resnet18", "tiny_resnet18_imagenet_lsq_w4a4"), ("tiny_vgg11", "tiny_vgg11_bn_lsq_w4a4")],
)  # fmt: skip
def test_which_layers(learned_numbers: Any, name: str, which: str) -> None:
    said = learned_numbers.json("keys")[which]
    with torch.device("meta"):
        points = layer_points(create_model(name))
    if "weights" in said:
        recorded = [key for key, levels in said["weights"] if levels == 16]
        renamed = {key.replace("block", "layer").replace("conv2d", "conv") for key in recorded}
        assert set(points) == renamed
    else:
        assert len(points) == said["n_qconv"]
