"""Learned quantizers against slow formulas: levels, codes, clip points, gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.options import QUANTIZERS
from lowbit.quant import parts
from lowbit.quant.conv import QuantConv2d, QuantLinear
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import at_bits, input_quantizer, weight_quantizer
from lowbit.quant.rounding import Levels, even_levels, quantize_evenly

X = torch.randn(64, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
G = torch.randn(64, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BITS = (1, 2, 3, 4, 8)


def module(quantizer: str, bits: int, data: Tensor, weights: bool = False, **more: Any) -> Any:
    made: Any = (weight_quantizer if weights else input_quantizer)(LearnedConfig(quantizer, bits, **more))
    made.to(data.dtype)
    if hasattr(made, "initialize_"):
        made.initialize_(data)
    return made


def gradients(of: nn.Module, x: Tensor, g: Tensor = G) -> tuple[Tensor, list[Tensor]]:
    leaf = x.clone().requires_grad_()
    of.zero_grad()
    of(leaf).backward(g)
    assert leaf.grad is not None
    return leaf.grad, [p.grad.clone() for p in of.parameters() if p.grad is not None]


def count_levels(quantizer: str, bits: int, what: str, released: bool = False) -> int | None:
    """Distinct values of a fine ramp through a quantizer; None: there is no such quantizer."""
    ramp = torch.linspace(0 if what == "after ReLU" else -60, 60, 60001, dtype=torch.float64)[None]
    data = X.abs() if what == "after ReLU" else X
    try:
        return len(module(quantizer, bits, data, what == "weights", released=released)(ramp).unique())
    except InputError:
        return None


def table() -> str:
    """Levels by quantizer and bits: weights, inputs after a ReLU, other inputs."""
    rows = ["| quantizer | " + " | ".join(f"{bits} bits" for bits in BITS) + " |"]
    for name in QUANTIZERS:
        kinds = ("weights", "after ReLU", "signed")
        cells = ["/".join(str(count_levels(name, b, kind) or "-") for kind in kinds) for b in BITS]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def test_levels() -> None:
    """2^b levels everywhere."""
    shown = table()
    print(shown)
    assert shown.splitlines()[1:] == [
        "| ste | 2/2/2 | 4/4/4 | 8/8/8 | 16/16/16 | 256/256/256 |",
        "| ewgs | 2/2/2 | 4/4/4 | 8/8/8 | 16/16/16 | 256/256/256 |",
        "| pact | 2/2/- | 4/4/4 | 8/8/8 | 16/16/16 | 256/256/256 |",
        "| lsq | -/2/- | 4/4/4 | 8/8/8 | 16/16/16 | 256/256/256 |",
        "| dorefa | 2/2/2 | 4/4/4 | 8/8/8 | 16/16/16 | 256/256/256 |",
    ]


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_the_released_programs_use_half_of_the_levels_after_a_relu(bits: int) -> None:
    for quantizer in ("pact", "lsq", "dorefa"):
        assert count_levels(quantizer, bits, "after ReLU", released=True) == 2 ** (bits - 1)
    assert count_levels("lsq", bits, "weights", released=True) == 2**bits


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_codes_are_what_forward_computes_with(quantizer: str, bits: int, released: bool) -> None:
    if (bits == 1 and quantizer == "lsq") or (released and (bits == 1 or quantizer in ("ste", "ewgs"))):
        return
    for dtype in (torch.float32, torch.float64):
        w = X.to(dtype)
        of = module(quantizer, bits, w, weights=True, released=released)
        if hasattr(of, "output_scale"):
            of.output_scale.data.fill_(-0.37)
        codes = of.codes(w)
        assert codes.grid.bits == bits and torch.equal(codes.values(), of(w).detach())
        low = -(2 ** (bits - 1)) if codes.grid.signed else 0
        assert low <= int(codes.codes.min()) and int(codes.codes.max()) < low + 2**bits
        given = module(quantizer, bits, w if bits > 1 else w.abs(), released=released)
        grid, y = given.grid(), given(w if bits > 1 else w.abs()).detach()
        if not bool(grid.scale.isnan()):
            steps = y / grid.scale + grid.zero_point
            low = -(2 ** (bits - 1)) if grid.signed else 0
            assert torch.allclose(steps, steps.round(), atol=1e-4)
            assert low <= int(steps.round().min()) and int(steps.round().max()) < low + 2**bits


def test_delta_0_is_straight_through_bit_for_bit() -> None:
    levels, low, rate = even_levels(3), X.new_tensor(-1.0), X.new_tensor(2.5)
    found = []
    for delta in (None, X.new_zeros(())):
        leaves = [t.clone().requires_grad_() for t in (X.float(), (1 / rate).float(), low.float(), rate.float())]
        quantize_evenly(leaves[0], leaves[1], levels, leaves[2], leaves[3], delta).backward(G.float())
        found.append([leaf.grad for leaf in leaves])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))  # type: ignore[arg-type]
    ste, ewgs = module("ste", 4, X), module("ewgs", 4, X, delta=0.0)
    assert torch.equal(ste(X), ewgs(X)) and torch.equal(gradients(ste, X)[0], gradients(ewgs, X)[0])
    scaled = gradients(module("ewgs", 4, X, delta=0.1), X)[0]
    assert not torch.equal(scaled, gradients(ste, X)[0])


@pytest.mark.parametrize("bits", [2, 4])
def test_a_step_is_the_paper_s(bits: int) -> None:
    """Esser et al., Eq. 1-3 and Sec. 2.2, value by value."""
    of = module("lsq", bits, X.abs())
    top, s = 2**bits - 1, float(of.of.step.detach())
    assert s == pytest.approx(2 * float(X.abs().mean()) / math.sqrt(top))
    for x in (X.abs(), X):  # whatever comes later: the codes are those of the first data
        dx, (ds,) = gradients(of, x)
        total = 0.0
        for value, up, down in zip(x.flatten().tolist(), G.flatten().tolist(), dx.flatten().tolist(), strict=True):
            v = value / s
            inside = 0 < v < top
            total += up * ((round(v) - v) if inside else (top if v >= top else 0))
            assert down == pytest.approx(up if inside else 0.0, abs=1e-15)
        assert float(ds) == pytest.approx(total / math.sqrt(top * X.shape[1]), rel=1e-9), "N: inputs of one picture"
    weight = module("lsq", bits, X, weights=True)
    assert float(weight.of.step.detach()) == pytest.approx(2 * float(X.abs().mean()) / math.sqrt(2 ** (bits - 1) - 1))


def test_who_wins_at_the_clip_point() -> None:
    """At the end of the range the interval and x get the gradient (ewgs), the step or the clipping value alone do."""
    x = torch.tensor([[0.0, 1.0, 3.0, 3.5]], dtype=torch.float64)
    one = torch.ones_like(x)
    of = module("ewgs", 2, x, delta=0.0)
    of.interval.low.data.fill_(0.0), of.interval.high.data.fill_(3.0)
    dx, (dlow, dhigh) = gradients(of, x, one)
    assert dx[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert (float(dlow), float(dhigh)) == pytest.approx((-(3 + 2 + 0) / 9, -(0 + 1 + 3) / 9))
    of = module("lsq", 2, x)
    of.of.step.data.fill_(1.0)
    dx, (ds,) = gradients(of, x, one)
    assert dx[0].tolist() == [0, 1, 0, 0] and float(ds) == pytest.approx((3 + 3) / math.sqrt(3 * 4))
    of = module("pact", 2, x)
    of.alpha.data.fill_(3.0)
    dx, (dalpha,) = gradients(of, x, one)
    assert dx[0].tolist() == [0, 1, 0, 0] and float(dalpha) == pytest.approx(2)
    of = module("dorefa", 2, x)
    dx, none = gradients(of, x, one)
    assert dx[0].tolist() == pytest.approx([1, 1, 0, 0]) and not none


def test_tangents_by_the_paper() -> None:
    """Zhou et al., Eq. 7-11."""
    w, g = X[:4], G[:4]
    t = torch.tanh(w.clone()).div(2 * torch.tanh(w).abs().max()).add(0.5)
    for bits in (2, 4, 8):
        of, n = module("dorefa", bits, w, weights=True), 2**bits - 1
        assert torch.allclose(of(w), 2 * torch.round(t * n) / n - 1)
        leaf = w.clone().requires_grad_()
        tanh = torch.tanh(leaf)
        (2 * (tanh / (2 * tanh.abs().max()) + 0.5) - 1).backward(g)
        assert leaf.grad is not None and torch.allclose(gradients(of, w, g)[0], leaf.grad)
    of = module("dorefa", 1, w, weights=True)
    assert torch.allclose(of(w), w.sign() * w.abs().mean()) and torch.allclose(gradients(of, w, g)[0], g)
    assert torch.allclose(module("dorefa", 2, w.abs())(w.abs()), torch.round(w.abs().clamp(0, 1) * 3) / 3)
    assert sorted(module("dorefa", 2, w)(w).unique().tolist()) == pytest.approx([-1, -1 / 3, 1 / 3, 1])


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_picture_s_result_does_not_depend_on_its_batch(quantizer: str) -> None:
    of = module(quantizer, 4, X).eval()
    mixed = torch.cat([X[:3], 100 * X[3:]])
    assert torch.equal(of(mixed)[:3], of(X[:3]))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_parts_and_second_derivatives_change_nothing(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of one pass over all, of many parts, and of the path that can be differentiated again."""
    of, leaf = module(quantizer, 3, X), X.clone().requires_grad_()
    wanted = [leaf, *of.parameters()]
    whole = torch.autograd.grad(of(leaf), wanted, G)
    again = torch.autograd.grad(of(leaf), wanted, G, create_graph=True)
    monkeypatch.setattr(parts, "PART", 100)
    cut = torch.autograd.grad(of(leaf), wanted, G)
    strided = torch.autograd.grad(of(leaf.t().contiguous().t()), wanted, G)
    for one, two, three, four in zip(whole, again, cut, strided, strict=True):
        for other in (two, three, four):
            assert torch.allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_half_precision_is_computed_in_single(quantizer: str, dtype: torch.dtype) -> None:
    of = module(quantizer, 8, X.float())
    y = of(X.to(dtype))
    assert y.dtype == dtype and torch.equal(y, of(X.to(dtype).float()).to(dtype))


def test_an_output_scale_multiplies_weight_and_bias() -> None:
    conv = nn.Conv2d(3, 4, 3).double()
    layer = QuantConv2d(conv, module("ewgs", 4, conv.weight, weights=True), module("ewgs", 4, X))
    layer.weight_quantizer.output_scale.data.fill_(-0.7)  # type: ignore[union-attr]
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    xh, wh = layer.input_quantizer(x), layer.weight_quantizer(conv.weight) / 0.7  # type: ignore[misc]
    assert torch.allclose(layer(x), 0.7 * torch.nn.functional.conv2d(xh, wh, conv.bias))
    plain, grid = layer.to_plain(), layer.input_grid()
    assert torch.allclose(plain(xh), layer(x)) and torch.equal(plain.bias, 0.7 * conv.bias)
    assert grid is not None and float(grid.zero_point) == 0 and float(grid.scale) == 1 / 15 and not grid.signed
    linear = nn.Linear(3, 2).double()
    float_weight = QuantLinear(linear, weight_quantizer(LearnedConfig("ste", 0)).double())  # type: ignore[union-attr,arg-type]
    assert float_weight.weight_codes() is None and torch.equal(float_weight(X[:, :3]), linear(X[:, :3]))


def test_what_does_not_exist_is_refused() -> None:
    for arguments in (
        ("int8", 4),
        ("lsq", 17),
        ("lsq", True),
        ("ewgs", 4, -1.0),
        ("ewgs", 4, 0.0, True),
        ("lsq", 1, 0.0, True),
        *(("lsq", *(torch.ones(2, 2) if at == place else 2 for at in range(3))) for place in range(3)),
    ):
        with pytest.raises(InputError, match=r"allowed|released") as found:
            LearnedConfig(*arguments)  # type: ignore[arg-type]
        assert "\n" not in str(found.value)
    with pytest.raises(InputError, match="no 1-bit weights"):
        weight_quantizer(LearnedConfig("lsq", 1))
    with pytest.raises(InputError, match="signed 1-bit"):
        module("pact", 1, X)
    for of, said in (
        (module("pact", 2, X), "signed 1-bit"),
        (module("dorefa", 2, X, released=True), "2 bits and more"),
    ):
        with pytest.raises(InputError, match=said), at_bits(of, 1):
            pass
        assert of.config.bits == 2
    with at_bits(of := module("pact", 2, X.abs()), 1):
        assert len(of(X.abs()).unique()) == 2
    assert input_quantizer(LearnedConfig("pact", 0)) is None and weight_quantizer(LearnedConfig("pact", 0)) is None


def test_a_step_that_crosses_0_stays_a_step() -> None:
    of = module("lsq", 4, X)
    before = of(X).detach()
    of.of.step.data.neg_()
    assert torch.equal(of(X), before)
    of.of.step.data.zero_()
    assert bool(of(X).isfinite().all())


def test_open_ends_leave_out_the_bound() -> None:
    ends = Levels(X.new_zeros(()), X.new_tensor(3.0), X.new_zeros(()), "code")
    x = torch.tensor([-0.51, -0.5, 3.49, 3.5], dtype=torch.float64, requires_grad=True)
    quantize_evenly(x, X.new_ones(()), ends).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 0]
