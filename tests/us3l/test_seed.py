"""Distillation from a frozen teacher: the formulas step by step, the queue, and what stays as it is."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.slim.layers import set_width_
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant
from lowbit.train.state import saved_state

HERE = Path(__file__)
runs = SimpleNamespace(**runpy.run_path(str(HERE.with_name("tiny_runs.py"))))
fake = SimpleNamespace(**runpy.run_path(str(HERE.parents[1] / "fake_step.py")))
METHODS = ("SEED", "SEED_MSE", "SEED_SimCLR")


def batch_of(method: str, step: int, dtype: torch.dtype = torch.float64) -> Batch:
    views = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(step), dtype=dtype)
    return Batch(tuple(views)[: 1 if method == "SEED" else 2], torch.arange(6))


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(1, keepdim=True).sqrt()


def seed_loss(s: Tensor, t: Tensor, queue: Tensor) -> Tensor:
    s, t, losses = unit(s), unit(t), []
    for a, b in zip(s, t, strict=True):
        others = [b, *queue.T]
        p = torch.stack([(b @ o / 0.1).exp() for o in others])
        e = torch.stack([(a @ o / 0.2).exp() for o in others])
        losses.append(-(p / p.sum() * (e / e.sum()).log()).sum())
    return torch.stack(losses).mean()


def cosine(p: list[Tensor], t: list[Tensor]) -> Tensor:
    return -((unit(p[0]) * unit(t[1])).sum(1).mean() + (unit(p[1]) * unit(t[0])).sum(1).mean()) / 2


def nt_xent(p: list[Tensor], t: list[Tensor]) -> Tensor:
    total = []
    for first, second in ((p[0], t[1]), (p[1], t[0])):
        rows, n = unit(torch.cat([first, second])), len(first)
        e = (rows @ rows.T / 0.5).exp()
        total += [-(e[i, (i + n) % (2 * n)] / (e[i].sum() - e[i, i])).log() for i in range(2 * n)]
    return torch.stack(total).mean()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_its_formula_step_by_step(method: str) -> None:
    objective = runs.seed(method).double()
    other = copy.deepcopy(objective)
    set_width_(other.encoder_q, 0.5)
    other.encoder_k.eval()
    optimizer, expected = runs.sgd(other), []
    for step in range(3):
        views = batch_of(method, step).views
        s, t = [other.encoder_q(x) for x in views], [other.encoder_k(x).detach() for x in views]
        if method == "SEED":
            loss = seed_loss(s[0], t[0], other.keys.queue.clone())
        else:
            loss = cosine([other.predictor(x) for x in s], t) if method == "SEED_MSE" else nt_xent(s, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
        if method == "SEED":
            other.keys.queue[:, 6 * step : 6 * step + 6] = unit(t[0]).T
    engine = Engine(
        Stage(objective, 1, {"main": constant(0.1)}), Run(accelerator=make_accelerator("no", cpu=True)), Meter()
    )
    engine.build()
    losses: list[float] = []
    objective.register_forward_hook(lambda module, args, out: losses.append(out.loss.item()))
    before = copy.deepcopy(objective.encoder_k.state_dict())
    for step in range(3):
        engine.batch(batch_of(method, step), Clock(0, 0, 1, step, 9, seed=0))
    assert losses == pytest.approx(expected, abs=1e-11)
    assert torch.allclose(objective.encoder_q.conv1.weight, other.encoder_q.conv1.weight, rtol=0, atol=1e-11)
    if method == "SEED":
        assert torch.allclose(objective.keys.queue, other.keys.queue, rtol=0, atol=1e-12)
    assert all(torch.equal(before[key], value) for key, value in objective.encoder_k.state_dict().items())
    assert not any(key.startswith("encoder_k.") for key in saved_state(objective)), "its file has the teacher"


@pytest.mark.parametrize(("method", "tensors"), list(zip(METHODS, fake.KINDS, strict=True)))
def test_a_step_reads_no_value_back_and_mixes_no_devices(method: str, tensors: str) -> None:
    fake.run_steps(tensors, runs.seed(method, decay=runs.decay()), batch_of(method, 0, torch.float32))
