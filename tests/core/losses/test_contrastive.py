"""Contrastive losses against slow formulas; where their gradients go."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.contrastive import crossed_info_nce, crossed_nt_xent, info_nce, nt_xent, queue_logits


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> float:
    rows = [v / v.norm() for v in torch.cat([first, second]).detach()]
    n, total = len(first), 0.0
    for i, row in enumerate(rows):
        others = {j: math.exp(float(row @ other) / temperature) for j, other in enumerate(rows) if j != i}
        total -= math.log(others[(i + n) % (2 * n)] / sum(others.values()))
    return total / len(rows)


def views(batch: int = 5, dim: int = 7) -> tuple[Tensor, ...]:
    return torch.randn(4, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_equals_the_formula(batch: int, temperature: float) -> None:
    a, b, _, _ = views(batch)
    assert nt_xent(a, b, temperature).item() == pytest.approx(slow_nt_xent(a, b, temperature), abs=1e-10)


def test_the_crossed_form_is_the_mean_over_both_pairs() -> None:
    q1, q2, p1, p2 = (v.clone().requires_grad_() for v in views())
    loss = crossed_nt_xent((q1, q2), (p1, p2), 0.5)
    slow = (slow_nt_xent(q1, p2, 0.5) + slow_nt_xent(q2, p1, 0.5)) / 2
    assert loss.item() == pytest.approx(slow, abs=1e-10)
    loss.backward()
    assert q1.grad is not None and q2.grad is not None and p1.grad is None and p2.grad is None


def test_nt_xent_falls_when_positives_agree() -> None:
    a, b, _, _ = views(16)
    assert nt_xent(a, a, 0.2) < nt_xent(a, b, 0.2)


def test_queue_logits_and_info_nce_equal_the_formula() -> None:
    query, key, rest, _ = (F.normalize(v, dim=-1) for v in views())
    queue = rest.T.contiguous()
    logits = queue_logits(query, key, queue, 0.2)
    for i in range(len(query)):
        expected = [float(query[i] @ key[i]) / 0.2, *(float(query[i] @ queue[:, k]) / 0.2 for k in range(5))]
        assert logits[i].tolist() == pytest.approx(expected, abs=1e-12)
    slow = sum(math.log(sum(math.exp(v) for v in row)) - row[0] for row in logits.tolist()) / len(logits)
    assert info_nce(logits).item() == pytest.approx(slow, abs=1e-12)


def test_keys_get_no_gradient_and_the_queue_may_not_move_before_the_backward() -> None:
    query, key, queue, _ = (v.clone() for v in views())
    query.requires_grad_(), key.requires_grad_()
    info_nce(queue_logits(query, key, queue.T, 0.2)).backward()
    assert key.grad is None and query.grad is not None and bool(query.grad.any())
    loss = info_nce(queue_logits(query, key, queue.T, 0.2))
    queue.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_moco_v3_asks_each_view_among_the_keys_of_the_other() -> None:
    q1, q2, k1, k2 = torch.randn(4, 5, 6, dtype=torch.float64).unbind()
    loss = 0.0
    for q, k in ((q1, k2), (q2, k1)):
        for i in range(5):
            e = [math.exp(F.cosine_similarity(q[i], k[j], dim=0).item() / 0.3) for j in range(5)]
            loss -= 2 * 0.3 * math.log(e[i] / sum(e)) / 5
    k1.requires_grad_()
    found = crossed_info_nce((q1.requires_grad_(), q2), (k1, k2), 0.3)
    assert found.item() == pytest.approx(loss, rel=1e-12)
    found.backward()
    assert q1.grad is not None and k1.grad is None
