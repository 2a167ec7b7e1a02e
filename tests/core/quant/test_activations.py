"""Activation quantizers against a slow formula; ranges of batches and running ones; which activations are chosen."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.quant.activations import (
    FUNCTIONS,
    RANGES,
    ActivationConfig,
    QuantActivation,
    quantize_activation_,
)
from lowbit.quant.calibrate import calibrate_, uncalibrated
from lowbit.quant.layers import quantizers
from lowbit.quant.places import activation_points, quantize_activations_, quantized_activations


def slow_round(values: list[float], largest: float, bits: int) -> list[float]:
    levels = 2**bits - 1
    return [round(v * levels / largest) * largest / levels for v in values]  # Python rounds half to even, too


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("function", ["relu", "relu6", "pact", "silu", "hardswish"])
def test_equals_the_formula(bits: int, function: str) -> None:
    x = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 5
    plain = {"pact": lambda v: v.clamp(0, 10)}.get(function) or getattr(torch.nn.functional, function)
    y = plain(x)
    ours = QuantActivation(ActivationConfig(bits, function)).double()(x).flatten()
    assert ours.tolist() == pytest.approx(slow_round(y.flatten().tolist(), y.abs().max().item(), bits), abs=1e-12)


def test_the_gradient_passes_straight_and_ties_go_to_even() -> None:
    x = torch.tensor([0.0, 0.5, 1.5, 2.5, 3.0], requires_grad=True)
    y = quantize_activation_(x * 1, torch.tensor(3.0), 2)
    assert y.tolist() == [0, 0, 2, 2, 3]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1] * 5


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("function", [*FUNCTIONS, "pact"])
def test_every_function_keeps_its_own_gradient(function: str, range: str) -> None:
    """Rounding in place is hidden from autograd: what a function's backward needs must not be what is rounded."""
    check_gradient(function, range)


@pytest.mark.parametrize("function", ["relu", "silu", "pact"])
def test_a_compiled_function_too(function: str) -> None:
    check_gradient(function, "batch", lambda module: torch.compile(module, backend="aot_eager", fullgraph=True))


def check_gradient(function: str, range: str, change: Callable = lambda module: module) -> None:
    module = QuantActivation(ActivationConfig(3, function, range)).double()
    x = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    calibrate_(module, [x * 1.5])
    plain = {"pact": lambda v: v.clamp(0, 10)}.get(function) or FUNCTIONS[function]
    v, w = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain(v).sum().backward()
    y = change(module.eval())(w)
    y.sum().backward()
    assert w.grad is not None and v.grad is not None and torch.equal(w.grad, v.grad)
    assert 2 < len(y.unique()) <= 15  # -7 to 7 at 3 bits


def test_bf16_keeps_its_type_and_rounds_in_single_precision() -> None:
    x = torch.rand(1000).bfloat16()
    y = QuantActivation(ActivationConfig(8))(x)
    assert y.dtype == torch.bfloat16
    exact = QuantActivation(ActivationConfig(8))(x.float()).bfloat16()
    assert torch.equal(y, exact)


def test_0_bits_leave_the_function() -> None:
    x = torch.randn(10)
    assert torch.equal(QuantActivation(ActivationConfig(0, "relu6", "running"))(x), x.clamp(0, 6))


@pytest.mark.parametrize(
    "wrong", [{"bits": -1}, {"bits": 17}, {"bits": 4, "function": "tanh"}, {"bits": 4, "range": "x"}]
)
def test_wrong_configurations(wrong: dict) -> None:
    with pytest.raises(InputError, match="allowed"):
        ActivationConfig(**wrong)


def running() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), QuantActivation(ActivationConfig(3, "relu", "running")))


def test_calibration_is_the_mean_of_the_batches_maxima_and_touches_nothing_else() -> None:
    torch.manual_seed(0)
    model = running()
    batches = [torch.randn(8, 2) for _ in range(3)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert uncalibrated(model) == ["2"]
    assert calibrate_(model, batches) == 3
    model.eval()
    maxima = torch.stack([model[1](model[0](x)).relu().amax() for x in batches])
    assert model[2].largest.item() == pytest.approx(maxima.mean().item()) and not uncalibrated(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items() if "largest" not in key)
    y = model(torch.randn(100, 2) * 100)
    assert y.max().item() == pytest.approx(model[2].largest.item()), "values beyond the range are clipped"


def test_a_stop_inside_calibration_changes_nothing() -> None:
    model = running()

    def batches() -> Iterator[Tensor]:
        yield torch.randn(8, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_(model, batches())
    assert model.training and uncalibrated(model) == ["2"] and model[2].seen is None
    with pytest.raises(InputError, match="no picture"):
        calibrate_(model, [])


def test_training_moves_the_running_range_and_clips_its_gradient() -> None:
    module = QuantActivation(ActivationConfig(4, "relu", "running"))
    module(torch.tensor([1.0, 2.0]))
    assert module.largest is not None and module.largest == 2
    x = torch.tensor([1.0, 12.0], requires_grad=True)
    module(x).sum().backward()
    assert module.largest.item() == pytest.approx(3.0)  # 2 + 0.1 (12 - 2)
    assert x.grad is not None and x.grad.tolist() == [1, 0]


def test_a_module_used_twice_trains_its_running_range() -> None:
    """As in timm's Res2Nets, DLAs and HRNets."""
    module = QuantActivation(ActivationConfig(3, "relu", "running")).train()
    calibrate_(module, [torch.rand(100)])
    x = torch.rand(100, requires_grad=True)
    module(module(x) * 2).sum().backward()
    assert x.grad is not None and bool(x.grad.any())


def test_ranks_share_the_range_in_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation is sharded by whole batches, and ranks may hold different numbers of them."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda t, op: t.clamp_(min=7.0))  # the other rank saw 7
    module, x = QuantActivation(ActivationConfig(3)), torch.tensor([0.0, 1.4, 3.5])
    assert module(x).tolist() == [0, 1, 4]  # steps of 1; 3.5 to even
    assert module.eval()(x).max() == 3.5


def test_points_of_nets() -> None:
    model = create_model("resnet26", num_classes=2)
    points = activation_points(model)
    assert len(points) == 8 * 3 and all(name.startswith("layer") for name in points), "the stem's act1 stays float"
    assert activation_points(model, ("layer1.0.*",)) == ["layer1.0.act1", "layer1.0.act2", "layer1.0.act3"]
    assert "layer2.0.act1" not in activation_points(model, exclude=("layer2.*",))
    silu = nn.Sequential(nn.SiLU(), nn.ReLU(), nn.ReLU(), nn.GELU())
    assert activation_points(silu) == ["1", "2", "3"]  # any function; the first is the stem's
    assert activation_points(silu, ("0", "3")) == ["0", "3"]
    with pytest.raises(InputError, match="matches no layer"):
        activation_points(silu, ("nothing",))


def test_quantizers_take_the_places_of_activations() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.GELU()).double().eval()
    quantize_activations_(model, ["1", "2"], lambda function: ActivationConfig(4, function))
    assert {name: q.config.function for name, q in quantizers(model).items()} == {"1": "relu", "2": "gelu"}
    assert not model[1].training
    with pytest.raises(InputError, match="Conv2d, not an activation"):
        quantize_activations_(model, ["0"], lambda function: ActivationConfig(4, function))


@pytest.mark.parametrize("range", RANGES)
@pytest.mark.parametrize("function", ["relu", "gelu", "pact"])
def test_an_empty_batch_gives_an_empty_output_and_moves_no_range(function: str, range: str) -> None:
    module = QuantActivation(ActivationConfig(3, function, range))
    calibrate_(module, [torch.ones(4), torch.zeros(0)])
    before = None if module.largest is None else module.largest.clone()
    for mode in (True, False):
        for shape in ((0,), (0, 3, 4, 4), (2, 0)):
            x = torch.zeros(shape, requires_grad=True)
            y = module.train(mode)(x)
            y.sum().backward()
            assert y.shape == shape and x.grad is not None and x.grad.shape == shape
    assert before is None or (module.largest is not None and torch.equal(module.largest, before) and bool(before > 0.8))


def test_calibration_on_empty_batches_alone_is_refused() -> None:
    model = running()
    assert calibrate_(model, [torch.zeros(0, 2), torch.randn(8, 2), torch.zeros(0, 2)]) == 1
    largest = model[2].largest.clone()
    for batches in ([], [torch.zeros(0, 2)]):
        with pytest.raises(InputError, match="no picture"):
            calibrate_(model, batches)
        assert torch.equal(model[2].largest, largest)


def test_a_quantized_net_takes_an_empty_batch_as_the_float_one_does() -> None:
    model = create_model("resnet26", num_classes=2).eval()
    x = torch.zeros(0, 3, 32, 32)
    assert model(x).shape == (0, 2)
    quantize_activations_(model, activation_points(model), lambda function: ActivationConfig(4, function))
    assert model(x).shape == (0, 2)


@pytest.mark.parametrize(
    ("arch", "quantized", "of"),
    [
        ("resnet18", 16, 17),  # the stem's stays float
        ("vit_tiny_patch16_224", 12, 12),  # its first activation is inside a block
        ("convnext_atto", 12, 12),
        ("efficientnet_b0", 48, 49),
        ("mobilenetv3_small_050", 32, 33),  # Hardswish and ReLU
        ("mixer_s32_224", 16, 16),
    ],
)
def test_every_activation_function_is_quantized(arch: str, quantized: int, of: int) -> None:
    with torch.device("meta"):
        model = create_model(arch, num_classes=2)
    assert quantized_activations(model) == (0, of)
    quantize_activations_(model, activation_points(model), lambda function: ActivationConfig(4, function))
    assert quantized_activations(model) == (quantized, of)


def test_activations_of_unknown_kind_and_float_ones_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.GELU(), nn.PReLU(), nn.Sigmoid())
    assert quantized_activations(model) == (0, 3)
    for bits, found in ((0, 0), (4, 1)):
        quantize_activations_(model, ["3"], lambda function, bits=bits: ActivationConfig(bits, function))
        assert quantized_activations(model) == (found, 3)
