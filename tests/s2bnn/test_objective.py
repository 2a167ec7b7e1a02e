"""One step of each method against formulas written out; queues, teachers, devices without values, two ranks as one."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.train.protocol import Clock, Out, Pass
from lowbit.train.state import saved_state
from s2bnn.objective import S2bnn
from s2bnn.options import METHODS

HERE = Path(__file__)
tiny = SimpleNamespace(**runpy.run_path(str(HERE.with_name("tiny_students.py"))))
fake = SimpleNamespace(**runpy.run_path(str(HERE.parents[1] / "fake_step.py")))
CLOCK = Clock(0, 0, 1, 0, 4, seed=0)
VARIANTS: dict[str, dict[str, Any]] = {
    **{method: {"method": method} for method in METHODS},
    "a queue": {"method": METHODS[2], "over": "queue", "wide": True},
    "two queues": {"method": METHODS[1], "over": "queue", "kl": True},
}


def batch_of(objective: S2bnn, dtype: torch.dtype = torch.float64, n: int = 5) -> Batch:
    views = torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(2), dtype=dtype)
    return Batch(tuple(views)[: objective.n_views], torch.arange(n))


def step(objective: S2bnn) -> tuple[Batch, Out]:
    batch = batch_of(objective)
    objective.train()
    return batch, objective(batch, CLOCK, Pass(), None)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def divergence(s: Tensor, t: Tensor) -> tuple[float, float]:
    """Cross-entropy and entropy of softmax(t) and softmax(s), number by number."""
    cross = entropy = 0.0
    for a, b in zip(s, t, strict=True):
        p, q = b.exp() / b.exp().sum(), a.exp() / a.exp().sum()
        cross -= sum(float(x * y.log()) for x, y in zip(p, q, strict=True)) / len(s)
        entropy -= sum(float(x * x.log()) for x in p) / len(s)
    return cross, entropy


@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_is_its_formula(name: str) -> None:
    objective = tiny.tiny(**VARIANTS[name]).double()
    queue = None if objective.keys is None else objective.keys.queue.clone()
    others = None if objective.teacher_keys is None else objective.teacher_keys.queue.clone()
    batch, out = step(objective)
    parts = {key: float(value) for key, value in out.parts.items()}
    with torch.no_grad():
        z = objective.encoder_q(batch.views[0])
        q, total = unit(z), 0.0
        if queue is not None:
            assert objective.encoder_k is not None
            k = unit(objective.encoder_k(batch.views[1]))
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], 1) / 0.2
            loss = float((logits.exp().sum(1).log() - logits[:, 0]).mean())
            assert parts["loss_cl"] == pytest.approx(loss, rel=1e-12)
            assert parts["top1"] == pytest.approx(100 * float((logits.argmax(1) == 0).double().mean()))
            above = [sum(float(x) > float(row[0]) for x in row) for row in logits]
            assert parts["top5"] == pytest.approx(100 * sum(n < 5 for n in above) / len(above))
            total += loss
        if objective.teacher is not None:
            assert not objective.teacher.training
            t = unit(objective.teacher(batch.views[0]))
            s = q if objective.projector is None else unit(objective.projector(z))
            if others is None:
                cross, entropy = divergence(s / 0.2, t / 0.1)
            else:
                own = (s * t).sum(1, keepdim=True), (t * t).sum(1, keepdim=True)
                seen = torch.cat([own[0], s @ others], 1), torch.cat([own[1], t @ others], 1)
                cross, entropy = divergence(seen[0] / 0.2, seen[1] / 0.1)
            assert parts["loss_kd"] == pytest.approx(cross, rel=1e-12)
            assert parts["teacher_entropy"] == pytest.approx(entropy, rel=1e-12)
            assert parts["kl"] == pytest.approx(cross - entropy, rel=1e-9) and parts["kl"] > 0
            total += cross - entropy if objective.kl else cross
    assert float(out.loss.detach()) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
def test_what_is_trained_what_is_saved_and_what_the_queues_take(name: str) -> None:
    objective = tiny.tiny(**VARIANTS[name]).double()
    method, saved = VARIANTS[name]["method"], {key.partition(".")[0] for key in saved_state(objective)}
    assert objective.n_views == (2 if "contrastive" in method else 1)
    assert saved == {"encoder_q"} | (
        ({"encoder_k", "keys"} if "contrastive" in method else set())
        | ({"teacher_keys"} if "over" in VARIANTS[name] else set())
        | ({"projector"} if "wide" in VARIANTS[name] else set())
    )
    before = {key: value.clone() for key, value in objective.named_buffers() if "queue" in key}
    _, out = step(objective)
    out.loss.backward()
    trained = {key for key, p in objective.named_parameters() if p.grad is not None}
    assert trained == {k for k, _ in objective.named_parameters() if k.startswith(("encoder_q.", "projector."))}
    objective.after_batch(CLOCK, [out.carry])
    for keys, rows in ((objective.keys, out.carry[0]), (objective.teacher_keys, out.carry[1])):
        if keys is not None:
            name = "keys" if keys is objective.keys else "teacher_keys"
            assert torch.equal(keys.queue[:, :5], rows.T) and not rows.requires_grad
            assert torch.equal(keys.queue[:, 5:], before[f"{name}.queue"][:, 5:]) and int(keys.queue_ptr) == 5


def test_a_divergence_has_the_gradient_of_the_cross_entropy() -> None:
    gradients = []
    for kl in (False, True):
        objective = tiny.tiny(METHODS[2], kl=kl).double()
        step(objective)[1].loss.backward()
        gradients.append([p.grad for p in objective.encoder_q.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_key_encoder_moves_once_a_batch_and_keeps_statistics_of_its_own() -> None:
    objective = tiny.tiny(METHODS[0]).double()
    assert objective.encoder_k is not None
    for p in objective.encoder_q.parameters():
        p.data += 1
    old = {key: p.clone() for key, p in objective.encoder_k.named_parameters()}
    objective.before_batch(CLOCK)
    own = dict(objective.encoder_q.named_parameters())
    for key, p in objective.encoder_k.named_parameters():
        assert torch.allclose(p, 0.9 * old[key] + 0.1 * own[key])
    step(objective)
    counts = [net.feature[0].bn1.running_mean for net in (objective.encoder_q, objective.encoder_k)]  # type: ignore[union-attr, index]
    assert not torch.equal(*counts)


@pytest.mark.parametrize("kind", fake.KINDS)
@pytest.mark.parametrize("name", VARIANTS)
def test_a_step_reads_no_value_and_stays_on_its_device(kind: str, name: str) -> None:
    objective = tiny.tiny(**VARIANTS[name])
    fake.run_steps(kind, objective, batch_of(objective, torch.float32), clip_grad=1.0)


def test_two_ranks_equal_one(processes: Any, tmp_path: Path) -> None:
    """Every method, with its queues, in float64 over 27 steps, batch norm over all processes."""
    started = processes.start(world=2, split=str(tmp_path))
    tiny.split_run(tmp_path)
    started.wait(0, 0)
    for name in tiny.SPLIT:
        one, first, second = (torch.load(tmp_path / f"{name}{n}.pt") for n in ("1.0", "2.0", "2.1"))
        start = tiny.tiny(name, **tiny.SPLIT[name]).double().state_dict()
        assert not all(torch.allclose(start[key], one[key]) for key in one)
        for key, value in one.items():
            assert torch.equal(first[key], second[key]), (name, key)
            assert torch.allclose(value, first[key], rtol=0, atol=1e-6 if value.is_floating_point() else 0), (name, key)
