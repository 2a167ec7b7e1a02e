"""A step mixes no devices and reads no value back (fake_step.py): toys through the loop's engine, and what is found."""

import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from lowbit.data.batch import Batch
from lowbit.train.protocol import Clock, Objective, Out, Pass
from lowbit.train.supervised import Supervised

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "fake_step.py")))
toys = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("toy_objectives.py"))))


def batch_of(side: int = 8, n: int = 12) -> Batch:
    return Batch((torch.randn(n, 3, side, side), torch.randn(n, 3, side, side)), torch.arange(n), torch.arange(n) % 4)


@pytest.mark.parametrize("toy", [*toys.TOYS, "distilled"])
@pytest.mark.parametrize("kind", fake.KINDS)
def test_toys(kind: str, toy: str) -> None:
    for stage in toys.stages(toy, True, 0.3, torch.float32):
        fake.run_steps(kind, stage.objective, batch_of(), rates=tuple(stage.lr), accumulate=2, clip_grad=0.5)


@pytest.mark.parametrize("optimizer", [SGD, Adam])
@pytest.mark.parametrize("kind", fake.KINDS)
def test_supervised(kind: str, optimizer: Callable[..., Optimizer]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    fake.run_steps(kind, Supervised(net, lambda student: optimizer(student.parameters(), lr=0.1)), batch_of())


class Careless(Objective):
    """Does one thing that stops or breaks a run on a GPU."""

    def __init__(self, does: Callable[["Careless", Tensor], Any], where: str) -> None:
        super().__init__()
        self.net, self.does, self.where = nn.Linear(3, 3), does, where
        self.register_buffer("count", torch.zeros(()))
        self.table = torch.ones(3)

    def optimizers(self) -> dict[str, Optimizer]:
        return {"main": SGD(self.net.parameters(), lr=0.1)}

    def do(self, where: str, x: Tensor) -> Any:
        return self.does(self, x) if where == self.where else 0.0

    def before_batch(self, clock: Clock) -> None:
        self.do("before_batch", self.net.weight)

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        y = self.net(batch.views[0].mean((2, 3)))
        return Out(y.square().mean() + self.do("forward", y))

    def before_step(self, clock: Clock, pas: Pass) -> None:
        self.do("before_step", self.net.weight)

    def after_step(self, clock: Clock, pas: Pass) -> None:
        self.do("after_step", self.net.weight)

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        self.do("after_batch", self.net.weight)


def assign(objective: Careless, x: Tensor) -> float:
    objective.count = torch.ones(())
    return 0.0


READS: dict[str, Callable[[Careless, Tensor], Any]] = {
    "float": lambda _, x: float(x.detach().mean()),
    "bool": lambda _, x: 1.0 if x.max() > 0 else 0.0,
    "item": lambda _, x: x.detach().sum().item(),
    "list": lambda _, x: len(x.detach().tolist()),
    "where": lambda _, x: len(x.detach().nonzero()),
}


@pytest.mark.parametrize("where", ["before_batch", "forward", "before_step", "after_step", "after_batch"])
@pytest.mark.parametrize("kind", fake.KINDS)
def test_a_value_that_is_read_back_is_found(kind: str, where: str) -> None:
    for does in READS.values() if where == "forward" else [READS["item"]]:
        with pytest.raises((RuntimeError, NotImplementedError, ValueError)):
            fake.run_steps(kind, Careless(does, where), batch_of())
    fake.run_steps(kind, Careless(READS["item"], "nowhere"), batch_of())


@pytest.mark.parametrize("where", ["forward", "after_batch"])
def test_a_tensor_on_another_device_is_found(where: str) -> None:
    with pytest.raises((RuntimeError, AssertionError)):
        fake.run_steps("fake cuda", Careless(lambda _, x: (x.detach() * torch.ones(3)).sum(), where), batch_of())
    for kind in ("fake cpu", "fake cuda"):  # a tensor that does not move with the module
        with pytest.raises((RuntimeError, AssertionError)):
            fake.run_steps(kind, Careless(lambda o, x: (x.detach() * o.table).sum(), where), batch_of())
    for kind in ("meta", "fake cuda"):
        with pytest.raises(AssertionError, match="count"):
            fake.run_steps(kind, Careless(assign, where), batch_of())
