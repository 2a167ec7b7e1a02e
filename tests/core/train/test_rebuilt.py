"""A frozen teacher that the program makes again: not in checkpoints, and the same on a resume."""

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD

from lowbit.checkpoint.digest import digest
from lowbit.train import engine as engines
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.protocol import Objective, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant

SETTINGS: dict[str, Any] = {"toy": "distilled", "bn": True, "dropout": 0.3, "dtype": "float32", "save_every": 7}


@pytest.mark.parametrize("world", [1, 2])
def test_killed(toys: Any, same: Any, tmp_path: Path, world: int) -> None:
    """The figures after a resume are those of an unbroken run; the files have no key of the teacher's."""
    settings, ranks = {"world": world, **SETTINGS}, list(range(world))
    toys.begin(**settings)
    folder = tmp_path / "run"
    toys.start(folder, do="SIGKILL", at=17, ranks=ranks, **settings).wait(*[-signal.SIGKILL] * world)
    toys.run(folder, resume=True, **settings)
    same.resumed(toys.unbroken(**settings), folder)
    teacher = sum(v.nbytes for k, v in torch.load(folder / "rank0.pt").items() if k.startswith("teacher."))
    for name in ("checkpoint.pth.tar", "checkpoint.prev.pth.tar", "model_best.pth.tar"):
        keys = list(torch.load(folder / name)["state_dict"])
        assert keys and all(key.startswith("module.") for key in keys), "the trunk's alone"
        assert (folder / name).stat().st_size < teacher


@pytest.mark.parametrize("world", [1, 2])
def test_another_teacher_is_refused(toys: Any, tmp_path: Path, world: int) -> None:
    folder = toys.run(tmp_path / "run", max_steps=2, world=world, **SETTINGS)
    before = (folder / "checkpoint.pth.tar").read_bytes()
    again = toys.start(folder, resume=True, teacher=1, world=world, **SETTINGS).wait(*[2] * world)
    (line,) = [line for line in again.said().splitlines() if line.startswith("InputError")]
    assert "made with other weights in teacher (digest " in line
    assert (folder / "checkpoint.pth.tar").read_bytes() == before


class Taught(Objective):
    """A student beside a teacher of batch norm."""

    rebuilt = ("teacher",)

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {"main": SGD(self.student.parameters(), lr=1)}


def test_it_is_frozen_and_not_sent_to_other_ranks_with_each_ddp(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = Taught()
    engine = Engine(Stage(objective, 1, {"main": constant(0.1)}), Run(accelerator=accelerator), Meter())
    with pytest.raises(ValueError, match="freeze them"):
        engine.build()
    objective.teacher.requires_grad_(False)
    engine.build()
    assert objective.student.training
    assert not any(module.training for module in objective.teacher.modules())
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(engines, "broadcast_", sent.extend)
    monkeypatch.setattr(engines, "DistributedDataParallel", lambda module, **_: module)
    engines.wrap(objective, 2)
    assert len(sent) == 2 and all(a is b for a, b in zip(sent, objective.student.parameters(), strict=True))


def test_a_digest_is_of_names_shapes_dtypes_and_bytes() -> None:
    net = nn.Sequential(nn.Linear(2, 2, bias=False))
    same = nn.Sequential(nn.Linear(2, 2, bias=False))
    same.load_state_dict(net.state_dict())
    with torch.no_grad():
        other = nn.Sequential(nn.Linear(2, 2, bias=False))
        other[0].weight.copy_(net[0].weight)
        other[0].weight[1, 1] += 1e-6
        wide = nn.Sequential(nn.Linear(4, 1, bias=False))
        wide[0].weight.copy_(net[0].weight.view(1, 4))
    assert digest(net.state_dict()) == digest(same.state_dict())
    others = [digest(m.state_dict()) for m in (net, net[0], other, wide, same.bfloat16(), nn.BatchNorm1d(2))]
    assert len(set(others)) == len(others) and all(len(d) == 16 for d in others)
