"""Losses against a teacher: SEED's formula row by row, mean squared errors across views, and where gradients go."""

import math

import torch
import torch.nn.functional as F

from lowbit.losses.distillation import crossed_mse, similarity_distillation


def test_seed_is_the_cross_entropy_of_similarities() -> None:
    generator = torch.Generator().manual_seed(0)
    s, t, queue = (F.normalize(torch.randn(n, 6, generator=generator, dtype=torch.float64), dim=1) for n in (3, 3, 5))
    expected = 0.0
    for i in range(3):
        others = [t[i], *queue]
        a = [math.exp((t[i] @ o).item() / 0.3) for o in others]
        b = [math.exp((s[i] @ o).item() / 0.7) for o in others]
        expected -= sum(x / sum(a) * math.log(y / sum(b)) for x, y in zip(a, b, strict=True)) / 3
    for x in (s, t, queue):
        x.requires_grad_()
    loss, entropy = similarity_distillation(s, t, queue.T, 0.7, 0.3)
    assert math.isclose(loss.item(), expected, rel_tol=1e-12)
    same, least = similarity_distillation(t, t, queue.T, 0.3, 0.3)
    assert math.isclose(same.item(), entropy.item(), rel_tol=1e-12) and entropy == least < loss
    loss.backward()
    assert s.grad is not None and t.grad is None and queue.grad is None


def test_mean_squared_error_across_views() -> None:
    s1, s2 = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    t1, t2 = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    loss = crossed_mse((s1, s2), (t1, t2))
    expected = (((s1 - t2) ** 2).mean() + ((s2 - t1) ** 2).mean()) / 2
    assert torch.allclose(loss, expected)
    loss.backward()
    assert s1.grad is not None and s2.grad is not None and t1.grad is None and t2.grad is None
