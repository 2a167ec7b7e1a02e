"""Siamese losses against a slow formula; where their gradients go."""

import math

import pytest
import torch
from torch import Tensor

from lowbit.losses.cosine import cosine_loss, negative_cosine, squared_distance_loss


def slow_cosines(p: Tensor, z: Tensor) -> float:
    def cosine(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)

    return sum(cosine(a, b) for a, b in zip(p.tolist(), z.tolist(), strict=True)) / len(p)


def vectors(batch: int = 6, dim: int = 8) -> tuple[Tensor, ...]:
    return torch.randn(4, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize(("batch", "dim"), [(1, 2), (3, 8), (16, 128)])
def test_equal_the_formula(batch: int, dim: int) -> None:
    p1, p2, z1, z2 = vectors(batch, dim)
    crossed = slow_cosines(p1, z2), slow_cosines(p2, z1)
    assert cosine_loss((p1, p2), (z1, z2)).item() == pytest.approx(-sum(crossed) / 2, abs=1e-12)
    squared = squared_distance_loss((p1, p2), (z1, z2)).item()
    assert squared == pytest.approx(sum(2 - 2 * c for c in crossed), abs=1e-12)


def test_the_second_form_has_four_times_the_gradient() -> None:
    p1, p2, z1, z2 = vectors()
    grads = []
    for loss in (cosine_loss, squared_distance_loss):
        leaf = p1.clone().requires_grad_()
        loss((leaf, p2), (z1, z2)).backward()
        grads.append(leaf.grad)
    assert grads[0] is not None and torch.allclose(grads[1], 4 * grads[0])


def test_targets_get_no_gradient() -> None:
    p1, p2, z1, z2 = (v.clone().requires_grad_() for v in vectors())
    cosine_loss((p1, p2), (z1, z2)).backward()
    assert p1.grad is not None and p2.grad is not None and z1.grad is None and z2.grad is None


def test_equal_vectors_are_minus_one() -> None:
    p = torch.randn(4, 8)
    assert negative_cosine(p, 3 * p).item() == pytest.approx(-1, abs=1e-6)
