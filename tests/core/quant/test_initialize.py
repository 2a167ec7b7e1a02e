"""The start of learned quantizers from data, equal on all ranks; whole nets: files, cost, devices, the Hessian."""

import runpy
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lowbit.cost import cost
from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.models.surgery import replace_
from lowbit.options import QUANTIZERS
from lowbit.quant.calibrate import has_ranges, uncalibrated
from lowbit.quant.conv import QuantConv2d
from lowbit.quant.entry import entered
from lowbit.quant.grad_scale import scale_by_hessian_
from lowbit.quant.initialize import initialize_, uninitialized
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points, learned_layers, quantize_learned_, quantizer_parameters
from lowbit.quant.lsq import LsqInput, LsqWeight
from lowbit.train.supervised import Supervised

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fake_step.py")))
ARCH = "cifar_resnet8_1x1"
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def quantized(quantizer: str, bits: int = 4, start: bool = True, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    net, config = create_model(ARCH, num_classes=3), LearnedConfig(quantizer, bits, **more)
    quantize_learned_(net, layer_points(net), lambda name: (config, config))
    return initialize_(net, [X[:4], X[4:]]) if start else net


def test_the_batches_are_one_and_each_layer_sees_quantized_inputs() -> None:
    one, two = quantized("ewgs", start=False), quantized("ewgs")
    assert uninitialized(one) and uncalibrated(one) and not has_ranges(one)
    before = {name: module.training for name, module in one.named_modules()}
    means = [m.running_mean.clone() for m in one.modules() if isinstance(m, nn.BatchNorm2d)]  # type: ignore[union-attr]
    initialize_(one, [X])
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))
    assert before == {name: module.training for name, module in one.named_modules()} and not uncalibrated(one)
    assert not torch.equal(means[0], one.bn1.running_mean), "batch norm follows its batch, as in training"
    seen: list[Tensor] = []
    second = one.layer1[0].conv2
    second.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for norm in one.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 0.0
    one.train()(X)
    expected = 3 * seen[0].std() / (1 - 2 / torch.pi) ** 0.5
    assert torch.allclose(second.input_quantizer.interval.high, expected)


def test_batch_norm_in_evaluation_mode_is_left_alone() -> None:
    net = quantized("lsq", start=False).eval()
    before = net.bn1.running_mean.clone()
    assert torch.equal(initialize_(net, [X]).bn1.running_mean, before)


def test_a_start_that_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match="no picture"):
        initialize_(quantized("lsq", start=False), [])
    with pytest.raises(InputError, match="NaN"):
        initialize_(quantized("lsq", start=False), [X * torch.nan])
    with pytest.raises(InputError, match="matches no layer"):
        layer_points(create_model(ARCH), ["conv7"])


def test_the_parameters_of_the_quantizers() -> None:
    net = quantized("ewgs")
    named = quantizer_parameters(net)
    points = layer_points(create_model(ARCH))
    assert list(learned_layers(net)) == points and "conv1" not in points and "fc" not in points
    assert len(named) == 5 * len(points)
    everything = dict(net.named_parameters())
    assert all(everything[name] is parameter for name, parameter in named.items())


KINDS = [*((name, 4, False) for name in QUANTIZERS), ("ewgs", 1, False), ("lsq", 2, False),
         *((name, 4, True) for name in ("lsq", "pact", "dorefa"))]  # fmt: skip


@pytest.mark.parametrize(("quantizer", "bits", "released"), KINDS)
def test_packed_files(quantizer: str, bits: int, released: bool, tmp_path: Path) -> None:
    """Of the released ones three stand at entries of blocks, for five of the eight layers."""
    net = quantized(quantizer, bits, released=released).eval()
    size = save_packed(net, tmp_path / "net", {"arch": ARCH, "args": {"num_classes": 3}})
    again = load_packed(tmp_path / "net")
    with torch.inference_mode():
        expected = net(X)
        assert torch.equal(again(X), expected)
    weights = sum(layer.weight.numel() for layer in learned_layers(net).values())
    floats = sum(t.numel() for t in net.state_dict().values() if t.is_floating_point()) - weights
    head = 3500 + 90 * len(learned_layers(net))  # JSON
    assert size < 1.05 * weights * bits / 8 + 4 * floats + head
    rows = {row.name: row for row in cost(net, (3, 8, 8)).layers}
    assert all(rows[name].bits == bits and rows[name].input_bits == bits for name in learned_layers(net))


def test_entries_without_a_shortcut_change_nothing() -> None:
    """A VGG whose blocks quantize what they receive, and one whose layers do."""
    torch.manual_seed(0)
    net, config = create_model("cifar_vgg8", num_classes=3), LearnedConfig("lsq", 4, released=True)
    by_layer, x = deepcopy(net), torch.randn(2, 3, 32, 32)
    new = {n: QuantConv2d(by_layer.get_submodule(n), LsqWeight(config), LsqInput(config)) for n in layer_points(net)}  # type: ignore[arg-type]
    replace_(by_layer, new)
    quantize_learned_(net, layer_points(net), lambda name: (config, config))
    assert list(entered(net)) == [name.removesuffix(".conv") for name in new] and not entered(by_layer)
    assert torch.equal(initialize_(net, [x])(x), initialize_(by_layer, [x])(x))


def test_a_state_dict_brings_everything(tmp_path: Path) -> None:
    for quantizer in QUANTIZERS:
        net, other = quantized(quantizer).eval(), quantized(quantizer, start=False).eval()
        other.load_state_dict(net.state_dict())
        assert torch.equal(net(X), other(X)) and not uncalibrated(other)


@pytest.mark.parametrize(
    ("quantizer", "kind"),
    [*(("ewgs", kind) for kind in fake.KINDS), ("lsq", "fake cpu"), ("pact", "fake cpu"), ("dorefa", "fake cuda")],
)
def test_a_step_reads_nothing_back_and_stays_on_its_device(quantizer: str, kind: Any) -> None:
    objective = Supervised(quantized(quantizer), lambda m: SGD(m.parameters(), 0.1))
    fake.run_steps(kind, objective, Batch((X,), torch.arange(8), torch.arange(8) % 3))


@pytest.mark.parametrize("of", ["input_quantizer", "weight_quantizer"])
def test_the_hessian_of_a_known_loss(of: str) -> None:
    """loss = sum a y^2 / 2 of the quantized values y = c q + d: by q trace / N is c^2 mean a, the gradient c a y."""
    torch.manual_seed(0)
    scaled, plain = LearnedConfig("ewgs", 4), LearnedConfig("ste", 4)
    net = nn.Sequential(nn.Linear(6, 6))
    quantize_learned_(net, ["0"], lambda name: (plain, scaled) if of == "input_quantizer" else (scaled, plain))
    x = torch.rand(50, 6)
    initialize_(net, [x])
    seen: list[Tensor] = []
    quantizer = getattr(net[0], of)
    quantizer.register_forward_hook(lambda module, args, out: seen.append(out))
    net(x)
    a, y = torch.rand_like(seen[0]), seen[0].detach()

    def loss() -> Tensor:
        seen.clear()
        net(x)
        return (a * seen[0] ** 2).sum() / 2

    found = scale_by_hessian_(net, [loss, loss], torch.Generator().manual_seed(0), draws=3)
    assert list(found) == [f"0.{of}.interval"], "the straight-through one keeps no delta"
    c = 1.0 if of == "input_quantizer" else 2 * float(quantizer.output_scale.detach())
    expected = c * float(a.mean() / (3 * (a * y).std()))
    assert float(quantizer.interval.delta) == pytest.approx(expected, rel=1e-5)
    (delta,) = scale_by_hessian_(net, [loss, loss, lambda: -loss()], torch.Generator(), draws=3).values()
    assert delta == pytest.approx(expected / 3, rel=1e-5), "the mean over batches is taken before the maximum with 0"
    assert list(scale_by_hessian_(net, [lambda: -loss()], torch.Generator(), draws=3).values()) == [0]


def test_the_hessian_does_not_know_an_output_scale_that_batch_norm_removes() -> None:
    torch.manual_seed(0)
    config, labels = LearnedConfig("ewgs", 2), torch.arange(20) % 4
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, eps=1e-12), nn.Tanh()).double()
    quantize_learned_(net, ["0"], lambda name: (config, config))
    x = torch.rand(20, 6, dtype=torch.float64)
    initialize_(net.train(), [x])
    weight, found = net[0].weight_quantizer, []
    for _ in range(2):
        for quantizer in (weight, net[0].input_quantizer):
            quantizer.interval.delta.fill_(1e-3)
        losses = [lambda: nn.functional.cross_entropy(net(x), labels)]
        found.append(scale_by_hessian_(net, losses, torch.Generator().manual_seed(0), draws=4))
        weight.output_scale.data.mul_(4)
    assert found[0] == pytest.approx(found[1], rel=1e-6) and all(found[0].values())


def test_the_hessian_goes_through_the_layers_behind() -> None:
    net = quantized("ewgs").train()
    labels = torch.arange(8) % 3
    before = deepcopy({n: p.detach() for n, p in net.named_parameters()})
    found = scale_by_hessian_(
        net, [lambda: nn.functional.cross_entropy(net(X), labels)], torch.Generator().manual_seed(0), draws=2
    )
    assert len(found) == 2 * len(learned_layers(net)) and all(0 <= delta < 1e6 for delta in found.values())
    assert any(found.values()) and all(torch.equal(p, before[n]) and p.grad is None for n, p in net.named_parameters())


def test_two_ranks_start_alike(processes: Any, tmp_path: Path) -> None:
    """As one process does, bit for bit; a rank that computed otherwise gets rank 0's."""
    processes.start(world=2, folder=str(tmp_path)).wait(0, 0)
    torch.manual_seed(0)
    one = quantized("ewgs").state_dict()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(found[key], value) for key, value in one.items())


@pytest.mark.parametrize(
    ("arch", "arguments"), [("vit_tiny_patch16_224", {"img_size": 32, "depth": 1}), ("test_convnext", {})]
)
@pytest.mark.parametrize("quantizer", ["ewgs", "lsq"])
def test_any_timm_net(quantizer: str, arch: str, arguments: dict[str, Any]) -> None:
    """A ViT and a ConvNeXt at 8 bits are close to what they were: signed and unsigned inputs, linear layers."""
    torch.manual_seed(0)
    net, config = create_model(arch, num_classes=3, **arguments).eval(), LearnedConfig(quantizer, 8)
    x = torch.randn(4, 3, 32, 32)
    before, layers = net(x).detach(), layer_points(net, ["*"])
    quantize_learned_(net, layer_points(net), lambda name: (config, config))
    after = initialize_(net, [x])(x).detach()
    assert list(learned_layers(net)) == layers[1:-1], "all but the first and the classifier"
    if quantizer == "lsq":
        assert float((after - before).norm() / before.norm()) < 0.2
