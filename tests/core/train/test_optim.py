"""Optimizers, learning rates and parameter groups by name."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW

from lowbit.train.optim import make_optimizer, make_schedule, parameter_groups
from lowbit.train.protocol import Clock
from lowbit.train.schedule import constant, cosine, milestones, warmed_up


def stepped(optimizer: str, steps: int = 3, **rates: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(gradient, weight) before each step and after the last."""
    weight = nn.Parameter(torch.linspace(-1, 2, 15).double().view(3, 5))
    made = make_optimizer([weight], optimizer, **rates)  # type: ignore[arg-type]
    seen = []
    for step in range(steps + 1):
        weight.grad = torch.sin(torch.arange(15.0) + step).double().view(3, 5)
        seen.append((weight.grad.clone(), weight.detach().clone()))
        made.step()
    return seen


def test_sgd_is_torchs() -> None:
    a, b = (nn.Linear(3, 2) for _ in range(2))
    b.load_state_dict(a.state_dict())
    ours, theirs = make_optimizer(a.parameters(), lr=0.1, weight_decay=0.01), SGD(b.parameters(), 0.1, 0.9, 0, 0.01)
    for _ in range(3):
        for net, optimizer in ((a, ours), (b, theirs)):
            net.zero_grad()
            net(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()
    assert type(ours) is SGD and torch.equal(a.weight, b.weight) and torch.equal(a.bias, b.bias)


def test_nesterov_looks_ahead() -> None:
    """w -= lr (g + m v), v = m v + g."""
    velocity = torch.zeros(3, 5, dtype=torch.float64)
    seen = stepped("nesterov", lr=0.1)
    for (gradient, before), (_, after) in pairwise(seen):
        velocity = 0.9 * velocity + gradient
        assert torch.allclose(after, before - 0.1 * (gradient + 0.9 * velocity), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("name", "kind"), [("adam", Adam), ("adamw", AdamW)])
def test_adam_and_adamw_follow_their_formulas(name: str, kind: type) -> None:
    """m, v: means of g and g^2, corrected; w = (1 - lr decay) w - lr m / (sqrt(v) + eps); Adam: g + decay w for g."""
    seen, m, v = stepped(name, lr=0.2, momentum=0.8, weight_decay=0.3), 0.0, 0.0
    for step, ((g, w), (_, after)) in enumerate(pairwise(seen), 1):
        g, w = (g + 0.3 * w, w) if name == "adam" else (g, (1 - 0.2 * 0.3) * w)
        m, v = 0.8 * m + 0.2 * g, 0.999 * v + 0.001 * g * g
        w = w - 0.2 * (m / (1 - 0.8**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(after, w, rtol=1e-9, atol=1e-12)
    assert type(make_optimizer([nn.Parameter(torch.ones(1))], name, lr=1)) is kind


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_follows_its_formula(decay: float) -> None:
    """v = momentum v + trust |w| / (|g| + decay |w|) (g + decay w), w = w - lr v; never clipped, also without decay."""
    seen, v = stepped("lars", lr=2.4, momentum=0.9, weight_decay=decay), 0.0
    for (g, w), (_, after) in pairwise(seen):
        v = 0.9 * v + 0.001 * w.norm() / (g.norm() + decay * w.norm()) * (g + decay * w)
        torch.testing.assert_close(after, w - 2.4 * v, rtol=1e-6, atol=0)


def test_an_unknown_name_is_a_fault() -> None:
    with pytest.raises(KeyError):
        make_optimizer([nn.Parameter(torch.ones(1))], "adagrad", lr=1)
    with pytest.raises(KeyError):
        make_schedule("poly", 1.0)


def clocks(epochs: int = 4, steps: int = 5) -> list[Clock]:
    return [Clock(0, epoch, epochs, step, steps, 0) for epoch in range(epochs) for step in range(steps)]


def test_schedules_by_name() -> None:
    pairs: list[tuple[Any, Any]] = [
        (make_schedule("step", 0.3, milestones=(1, 3), gamma=0.5), milestones(0.3, (1, 3), 0.5)),
        (make_schedule("cosine", 0.3, milestones=(1,)), cosine(0.3)),
        (make_schedule("cosine", 0.3, per_step=False), cosine(0.3, per_step=False)),
        (make_schedule("cosine", 0.3, warmup_epochs=2), warmed_up(cosine(0.3), 2)),
    ]
    assert all(ours(clock) == theirs(clock) for ours, theirs in pairs for clock in clocks())


def test_warm_up_rises_to_what_the_schedule_says() -> None:
    rate = warmed_up(constant(0.5), 2)
    found = [rate(clock) for clock in clocks()]
    assert found == pytest.approx([0.5 * step / 10 for step in range(1, 11)] + [0.5] * 10)
    late = warmed_up(milestones(1.0, [1]), 2)  # a milestone keeps its epoch
    assert [late(clock) for clock in clocks()][4:6] == pytest.approx([0.5, 0.06])
    plain = cosine(1.0)
    assert warmed_up(plain, 0) is plain


def test_parameter_groups() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
            self.predictor, self.predictors, self.teacher = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 2)
            self.teacher.requires_grad_(False)

    def shown(**options: Any) -> dict[str, tuple[float, str]]:
        net = Net()
        names = {parameter: name for name, parameter in net.named_parameters()}
        groups = parameter_groups(net, 0.1, **options)
        return {names[p]: (group["weight_decay"], group["schedule"]) for group in groups for p in group["params"]}

    trained = [name for name, _ in Net().named_parameters() if not name.startswith("teacher")]
    assert shown() == dict.fromkeys(trained, (0.1, "main")) and len(parameter_groups(Net(), 0.1)) == 1
    weights = ("trunk.0.weight", "predictor.weight", "predictors.weight")
    assert shown(decay_norm_and_bias=False) == {name: (0.1 if name in weights else 0.0, "main") for name in trained}
    fixed = shown(fixed=("predictor.",))
    assert {name for name in trained if fixed[name][1] == "fixed"} == {"predictor.weight", "predictor.bias"}
