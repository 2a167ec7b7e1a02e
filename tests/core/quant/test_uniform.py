"""Uniform quantizers against slow formulas, and the facts of their gradients."""

import math

import pytest
import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.quant import parts, uniform
from lowbit.quant.uniform import (
    WeightConfig,
    asymmetric_grid,
    check_bits,
    fake_quantize,
    integer_codes,
    largest_magnitude,
    quantize_activation_range,
    quantize_weight,
    weight_grid,
)

BITS = [2, 3, 4, 8, 16]


def slow_weight(row: list[float], bits: int, top: float) -> list[float]:
    scale = max(abs(v) for v in row) / top
    return [min(max(round(v / scale), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) * scale for v in row]


def slow_activation(values: list[float], low: float, high: float, bits: int) -> list[float]:
    scale = (high - low) / (2**bits - 1)
    zero = -round(low / scale)
    return [(min(max(round(v / scale) + zero, 0), 2**bits - 1) - zero) * scale for v in values]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("grid", ["half", "whole"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_equal_the_formula(bits: int, grid: str, per_channel: bool) -> None:
    w = torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(bits))
    ours = quantize_weight(w, torch.tensor(bits), WeightConfig(grid, per_channel))
    top = 2 ** (bits - 1) - (0.5 if grid == "half" else 1)
    rows = w.flatten(1).tolist() if per_channel else [w.flatten().tolist()]
    slow = [value for row in rows for value in slow_weight(row, bits, top)]
    assert ours.flatten().tolist() == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize("bits", [1, *BITS])
@pytest.mark.parametrize(("low", "high"), [(0.0, 2.5), (-1.0, 2.0), (0.7, 2.9), (-3.0, -1.0)])
def test_activations_equal_the_formula(bits: int, low: float, high: float) -> None:
    x = torch.randn(200, dtype=torch.float64, generator=torch.Generator().manual_seed(bits)) * 3
    ends = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    ours = quantize_activation_range(x, *ends, torch.tensor(bits))
    assert ours.tolist() == pytest.approx(slow_activation(x.tolist(), low, high, bits), abs=1e-12)


def test_the_gradient_reaches_the_bounds_and_ends_beyond_them() -> None:
    x = torch.tensor([-2.6, -2.0, -0.4, 0.5, 1.0, 1.4, 1.6], requires_grad=True)
    grid = asymmetric_grid(torch.tensor(-2.0), torch.tensor(1.0), torch.tensor(2))  # steps of 1: -2, -1, 0, 1
    y = fake_quantize(x, grid)
    assert y.tolist() == [-2, -2, 0, 0, 1, 1, 1]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]  # by the rounded value, bounds included


@pytest.mark.parametrize("grid", ["half", "whole"])
def test_the_scale_s_gradient_is_that_of_the_written_formula(grid: str) -> None:
    """Per channel: sum of g (code - inside w / s) sent to the extreme weight; other weights get g inside alone."""
    w, g = torch.randn(2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).unbind()
    w[2] = -w[2]
    leaf = w.clone().requires_grad_()
    quantize_weight(leaf, torch.tensor(3), WeightConfig(grid, differentiable_scale=True)).backward(g)
    top = 3.5 if grid == "half" else 3.0
    assert leaf.grad is not None
    for row, upstream, grad in zip(w, g, leaf.grad, strict=True):
        extreme = int(row.abs().argmax())
        scale = row.abs().max() / top
        code = (row / scale).round().clamp(-4, 3)
        inside = code == (row / scale).round()
        expected = upstream * inside
        expected[extreme] += (upstream * (code - inside * row / scale)).sum() * row[extreme].sign() / top
        assert torch.allclose(grad, expected, atol=1e-12)


def test_a_tie_of_minimum_and_maximum_is_halved_and_goes_to_the_first() -> None:
    w = torch.tensor([[1.0, -2.0, 2.0, -2.0, 2.0]], requires_grad=True)
    largest_magnitude(w, differentiable=True).sum().backward()
    assert w.grad is not None and w.grad.tolist() == [[0, -0.5, 0.5, 0, 0]]


@pytest.mark.parametrize("differentiable", [False, True])
def test_a_channel_of_zeros_is_left_alone_and_gets_its_gradient(differentiable: bool) -> None:
    w = torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    w[1] = 0
    config, leaf = WeightConfig(differentiable_scale=differentiable), w.clone().requires_grad_()
    y = quantize_weight(leaf, torch.tensor(2), config)
    y.sum().backward()
    assert not y[1].any() and torch.equal(y[[0, 2]].detach(), quantize_weight(w[[0, 2]], torch.tensor(2), config))
    assert leaf.grad is not None and leaf.grad[1].tolist() == [1] * 5 and leaf.grad.isfinite().all()


def test_0_bits_and_an_empty_range_change_nothing() -> None:
    x = torch.randn(50, requires_grad=True)
    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    for y in (
        quantize_activation_range(x, zero, one, torch.tensor(0)),
        quantize_activation_range(x, one, one, torch.tensor(4)),
        quantize_weight(x[None], torch.tensor(0))[0],
    ):
        assert torch.equal(y, x)
        x.grad = None
        y.sum().backward()
        assert x.grad is not None and bool((x.grad == 1).all())


@pytest.mark.parametrize("bits", BITS)
def test_codes_stand_for_the_values(bits: int) -> None:
    w = torch.randn(4, 9, generator=torch.Generator().manual_seed(bits))
    grid = weight_grid(w, torch.tensor(bits), WeightConfig())
    codes = integer_codes(w, grid)
    assert codes.dtype == torch.int32 and int(codes.min()) >= -(2 ** (bits - 1)) and int(codes.max()) < 2 ** (bits - 1)
    assert torch.equal(codes * grid.scale, fake_quantize(w, grid))
    low, high = torch.aminmax(w)
    grid = asymmetric_grid(low, high, torch.tensor(bits))
    codes = integer_codes(w, grid)
    assert int(codes.min()) >= 0 and int(codes.max()) <= 2**bits - 1
    assert torch.equal((codes - grid.zero_point) * grid.scale, fake_quantize(w, grid))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_of_half_precision_stand_for_the_values(dtype: torch.dtype) -> None:
    w = torch.randn(8, 99, generator=torch.Generator().manual_seed(0)).to(dtype)
    grid = weight_grid(w, torch.tensor(4), WeightConfig())
    assert torch.equal((integer_codes(w, grid) * grid.scale.float()).to(dtype), fake_quantize(w, grid))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype: torch.dtype) -> None:
    x: Tensor = torch.rand(1000, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    y = quantize_activation_range(x, torch.tensor(0.0), torch.tensor(1.0), torch.tensor(8))
    single = quantize_activation_range(x.detach().float(), torch.tensor(0.0), torch.tensor(1.0), torch.tensor(8))
    assert y.dtype == dtype and torch.equal(y.detach(), single.to(dtype))
    y.sum().backward()
    assert x.grad is not None and x.grad.dtype == dtype


def test_more_bits_err_less() -> None:
    w = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    errors = [(quantize_weight(w, torch.tensor(b)) - w).norm().item() for b in (2, 3, 4, 6, 8, 12)]
    assert errors == sorted(errors, reverse=True) and math.isclose(errors[-1], 0, abs_tol=0.1)


def test_a_wrong_grid_is_refused() -> None:
    with pytest.raises(InputError, match="half, whole"):
        WeightConfig("full")


@pytest.mark.parametrize("wrong", [1, 17, -2, 2.0, True, "4"])
def test_bits_out_of_range(wrong: int) -> None:
    with pytest.raises(InputError, match=r"0 \(float\) or 2 to 16"):
        check_bits(wrong, "weights")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_range_in_parts_equals_the_formula_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, layout: torch.memory_format, relu: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(parts, "PART", 100)
    generator = torch.Generator().manual_seed(0)
    for number in range(40):
        x = torch.randn(2, 3, 8, 8, generator=generator, dtype=dtype)
        low, high = torch.rand(2, generator=generator, dtype=dtype) * torch.tensor([-1.5, 2.5], dtype=dtype)
        low, bits = low * (number % 3), torch.tensor(number % 5)
        grid = asymmetric_grid(low, high, bits)
        if number % 4 == 0 and bits:  # ties, and the ends of the clip with their neighbours
            x.view(-1)[:41] = torch.arange(-1.0, 40.0, dtype=dtype) / 2 * grid.scale
        x = x.to(memory_format=layout)
        g = torch.randn(x.shape, generator=generator, dtype=dtype)
        mine, formula = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = quantize_activation_range(mine, low, high, bits, relu)
        expected = fake_quantize(torch.relu(formula) if relu else formula, grid)
        y.backward(g), expected.backward(g)
        assert torch.equal(y, expected) and torch.equal(mine.grad, formula.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_a_clip_are_the_last_values_inside(dtype: torch.dtype) -> None:
    scales = torch.rand(2000, generator=torch.Generator().manual_seed(1), dtype=dtype) * 3 + 1e-3
    for number, scale in enumerate(scales):
        lowest, highest = (
            torch.tensor(-float(number % 7), dtype=dtype),
            torch.tensor(float(number % 9 + 1), dtype=dtype),
        )
        low, high = uniform._ends(scale, lowest, highest, relu=False)
        outer = torch.nextafter(low, -torch.ones_like(low) * 100), torch.nextafter(high, torch.ones_like(high) * 100)
        assert (low / scale).round() >= lowest and (high / scale).round() <= highest
        assert (outer[0] / scale).round() < lowest and (outer[1] / scale).round() > highest
