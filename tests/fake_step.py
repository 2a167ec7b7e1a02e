"""Steps of an objective on tensors without values, which stand in for a GPU; not a test itself.

An operation on tensors of two devices fails on them, and so does what would read a value back (`item`, `bool`, `float`,
`tolist`), for which a GPU would make the program wait. Three kinds, since each lets something through: `meta` tensors,
beside which draws and tables of the CPU keep their values; fake tensors of the CPU, which also refuse real tensors that
were made elsewhere; fake tensors of a GPU, whose operations all compare devices, but which have no backward where there
is no GPU: gradients of zeros are put in its place.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Literal
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily

from lowbit.data.batch import Batch
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.protocol import Clock, Objective, Pass, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant

Kind = Literal["meta", "fake cpu", "fake cuda"]
KINDS: tuple[Kind, ...] = ("meta", "fake cpu", "fake cuda")
STEPS: dict[Kind, int] = {"meta": 2, "fake cpu": 1, "fake cuda": 1}  # a second finds the state of the optimizers


def need_fake_cuda() -> None:
    """Skip where fake CUDA tensors want a GPU: under torch 2.9, and under builds for the CPU alone."""
    try:
        with FakeTensorMode():
            torch.empty(2, device="cuda:0")[:1]
    except RuntimeError as error:
        pytest.skip(f"fake CUDA tensors of torch {torch.__version__} need a GPU: {str(error).splitlines()[0]}")


def device_of(kind: Kind) -> torch.device:
    return {"meta": torch.device("meta"), "fake cpu": torch.device("cpu"), "fake cuda": torch.device("cuda", 0)}[kind]


def replace_tensors_(module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change every parameter and buffer; shared ones stay shared."""
    done: dict[int, Tensor] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, old in tensors.items():
                if old is not None:
                    new = done.get(id(old))
                    if new is None:
                        new = change(old.detach())
                        if isinstance(old, nn.Parameter):
                            new = nn.Parameter(new, old.requires_grad)
                        done[id(old)] = new
                    tensors[name] = new  # type: ignore[assignment]


@contextmanager
def zero_gradients(objective: Objective) -> Iterator[None]:
    """`backward` gives every trained parameter a gradient of zeros."""

    def backward(loss: Tensor) -> None:
        assert loss.dim() == 0 and loss.requires_grad
        for parameter in objective.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)

    with mock.patch.object(Tensor, "backward", backward):
        yield


def assert_on(device: torch.device, objective: Objective, engine: Engine, losses: Sequence[Tensor]) -> None:
    """Parameters, buffers, states of optimizers (their counters of steps apart) and losses."""
    tensors = {**dict(objective.named_parameters()), **dict(objective.named_buffers())}
    for optimizer in engine.optimizers.values():
        for number, state in enumerate(optimizer.state.values()):
            moved = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != "step"}
            tensors |= {f"{type(optimizer).__name__} {number} {key}": value for key, value in moved.items()}
    tensors |= {f"loss {number}": value for number, value in enumerate(losses)}
    elsewhere = {name: str(tensor.device) for name, tensor in tensors.items() if tensor.device.type != device.type}
    assert losses and not elsewhere, elsewhere


def run_steps(
    kind: Kind, objective: Objective, batch: Batch, *, rates: Sequence[str] = ("main",), **options: Any
) -> None:
    """A batch or two through the loop's engine: forward, backward, optimizers and the hooks of batches and steps.

    Args:
        kind: of the tensors.
        objective: on the CPU, with values; it is of no use afterwards.
        batch: likewise.
        rates: names of the schedules.
        options: of `Run`, such as `accumulate` and `clip_grad`.
    """
    if kind == "fake cuda":
        need_fake_cuda()
    device, clocks = device_of(kind), [Clock(0, 0, 1, step, 1000, seed=0, done=step) for step in range(STEPS[kind])]
    passes = objective.passes

    def drawn(clock: Clock) -> Sequence[Pass]:
        with unset_fake_temporarily():  # a plan's draws are the CPU's, and their values are read
            return passes(clock)

    objective.passes = drawn  # type: ignore[method-assign]
    fake = None if kind == "meta" else FakeTensorMode()
    if fake is None:
        replace_tensors_(objective, lambda tensor: tensor.to(device))
    else:
        replace_tensors_(objective, fake.from_tensor)
        label = None if batch.label is None else fake.from_tensor(batch.label)
        batch = Batch(tuple(map(fake.from_tensor, batch.views)), fake.from_tensor(batch.index), label, batch.share)
    with (
        warnings.catch_warnings(),
        fake or nullcontext(),
        zero_gradients(objective) if kind == "fake cuda" else nullcontext(),
    ):
        warnings.filterwarnings("ignore", message="Accessing the data pointer of FakeTensor")  # it waits for nothing
        if kind == "fake cuda":
            replace_tensors_(objective, lambda tensor: tensor.to(device))
        accelerator: Any = SimpleNamespace(device=device, num_processes=1, mixed_precision="no", scaler=None)
        stage, meter = Stage(objective, 1, {name: constant(0.1) for name in rates}), Meter(device)
        engine = Engine(stage, Run(accelerator=accelerator, **options), meter)
        with mock.patch.object(objective, "to"), mock.patch("lowbit.train.engine.seed_global"):
            engine.build()
            for clock in clocks:
                engine.batch(batch, clock)
    assert_on(device, objective, engine, meter.recent["loss"][0])
