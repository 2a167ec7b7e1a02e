"""Bit planes against slow formulas: codes, gradients, growth, pruning that saturates several planes."""

import pytest
import torch
from torch import Tensor

from bsq import planes
from bsq.planes import Planes

SEED = torch.Generator().manual_seed(0)


def slow_weight(p: Tensor, n: Tensor, scale: float) -> list[float]:
    """The paper's reconstruction, one weight at a time."""
    bits, out = p.shape[-1], []
    for pi, ni in zip(p.reshape(-1, bits).tolist(), n.reshape(-1, bits).tolist(), strict=True):
        r = sum((a - b) * 2 ** (bits - 1 - i) for i, (a, b) in enumerate(zip(pi, ni, strict=True))) / (2**bits - 1)
        r = max(-1.0, min(1.0, r))
        out.append(scale * round(r * (2**bits - 1)) / (2**bits - 1))
    return out


def random_planes(bits: int, high: float = 2.0, shape: tuple[int, ...] = (3, 4)) -> Planes:
    p, n = (torch.rand(*shape, bits, dtype=torch.float64, generator=SEED) * high for _ in range(2))
    return Planes(p, n, torch.tensor(0.7, dtype=torch.float64))


@pytest.mark.parametrize("bits", [1, 2, 5, 8, 12])
def test_reconstruction_and_its_gradients(bits: int) -> None:
    p, n, scale = (t.requires_grad_() for t in random_planes(bits))
    w = planes.reconstruct(p, n, scale)
    assert w.flatten().tolist() == pytest.approx(slow_weight(p, n, 0.7), abs=1e-12)
    g = torch.randn(w.shape, dtype=torch.float64, generator=SEED)
    d_p, d_n, d_s = torch.autograd.grad((w * g).sum(), (p, n, scale))
    for i in range(bits):
        assert torch.allclose(d_p[..., i], g * 0.7 * 2 ** (bits - 1 - i) / (2**bits - 1), atol=1e-12)
    assert torch.equal(d_n, -d_p)
    assert d_s.item() == pytest.approx(((w * g).sum() / 0.7).item())


@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_float_to_planes_is_symmetric_rounding(bits: int) -> None:
    w = torch.randn(50, generator=SEED)
    p, n, scale = planes.from_float(w, bits)
    assert ((p == 0) | (p == 1)).all() and not (p * n).any()
    error = (planes.reconstruct(p, n, scale) - w).abs().max()
    assert error <= 0.5 * scale / (2**bits - 1) * (1 + 1e-3) and scale == w.abs().max()
    again = planes.from_float(planes.reconstruct(p, n, scale), bits)
    assert torch.equal(again.p, p) and torch.equal(again.n, n)


def test_double_weights_get_the_codes_of_single_precision() -> None:
    w = torch.randn(1000, generator=SEED)
    assert torch.equal(planes.encode(w, 8)[0], planes.encode(w.double(), 8)[0])
    assert planes.from_float(w.double(), 8).scale.dtype == torch.float64


def test_0_bits_build_one_empty_plane() -> None:
    p, n, scale = planes.from_float(torch.randn(4), 0)
    assert p.shape == (4, 1) and planes.is_dead(p, n) and scale == 0


@pytest.mark.parametrize("bits", [0, 1, 4])
def test_latent_weights(bits: int) -> None:
    r, scale = torch.tensor([-1.5, -0.4, 0.0, 0.2, 1.0], requires_grad=True), torch.tensor(2.0, requires_grad=True)
    w = planes.reconstruct_latent(r, scale, bits)
    levels = 2**bits - 1
    expected = [2 * round(max(-1, min(1, v)) * levels) / levels if bits else 0 for v in r.tolist()]
    assert w.tolist() == pytest.approx(expected)
    w.sum().backward()
    assert r.grad is not None and r.grad.tolist() == [2.0 if bits else 0.0] * 5  # also beyond +-1; dead stays dead
    assert scale.grad is not None and scale.grad.item() == pytest.approx(sum(expected) / 2)


def test_widths_grow_by_one_and_saturate_at_the_ceiling() -> None:
    two = random_planes(3)._replace(p=torch.full((2, 3), 2.0), n=torch.zeros(2, 3), scale=torch.tensor(0.5))
    grown = planes.requantize(two, max_bits=8)
    assert grown.bits == 4 and grown.scale.item() == pytest.approx(0.5 * 15 / 7)
    assert planes.reconstruct(*grown).tolist() == pytest.approx([1.0, 1.0])  # r = 2
    full = planes.requantize(two, max_bits=3)
    assert full.bits == 3 and full.p.all() and full.scale == 0.5


def test_pruning_keeps_the_weights() -> None:
    code = torch.tensor([0, 4, -8, 12])  # of 8 bits: 4 empty planes above, 2 below
    p, n = planes.to_planes(code, 8, torch.zeros(1))
    before = Planes(p, n, torch.tensor(0.3))
    after = planes.prune(before)
    assert after.bits == 2
    assert planes.reconstruct(*after).tolist() == pytest.approx(planes.reconstruct(*before).tolist(), rel=1e-6)
    assert planes.prune(Planes(p * 0, n * 0, torch.tensor(0.3))).bits == 1


def test_a_threshold_that_drops_two_planes_saturates_the_weights_of_both() -> None:
    code = torch.tensor([8] + [4] + [-3, 3] * 49)  # 1 % use the first plane, 1 % the second
    p, n = planes.to_planes(code, 4, torch.zeros(1))
    after = planes.prune(Planes(p, n, torch.tensor(1.0)), threshold=1.5)
    assert after.bits == 2
    assert planes.codes(after.p, after.n)[:4].tolist() == [3, 3, -3, 3]  # the original turns the 8 into 0


def test_the_group_lasso_of_the_formula() -> None:
    p, n, _ = random_planes(3)
    norm = sum((1e-8 + (p[..., i] ** 2).sum() + (n[..., i] ** 2).sum()).sqrt() for i in range(3))
    assert planes.group_lasso(p, n).item() == pytest.approx(float(norm) * 12 * 3)


def test_autocast_does_not_touch_the_codes() -> None:
    p, n, scale = (t.float() for t in random_planes(8))
    with torch.autocast("cpu", torch.bfloat16):
        inside = planes.reconstruct(p, n, scale)
    assert torch.equal(inside, planes.reconstruct(p, n, scale))


def test_ones_are_percent_of_the_weights() -> None:
    p, n = planes.to_planes(torch.tensor([3, -2, 0, 1]), 2, torch.zeros(1))
    assert planes.ones(p, n).tolist() == [50.0, 50.0]
