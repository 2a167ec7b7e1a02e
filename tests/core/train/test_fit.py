"""What `fit` writes, refuses and puts back, in one process."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD

from lowbit import __version__
from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.metrics import read_metrics
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import constant
from lowbit.train.supervised import Supervised


class Fixed:
    """Three batches of 6, 6 and 4 pictures."""

    global_batch, last_batch = 6, 4

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        for step in range(start, 3):
            n = 4 if step == 2 else 6
            x = torch.randn(n, 5, generator=torch.Generator().manual_seed(100 * epoch + step))
            yield Batch((x,), torch.arange(n), (x.sum(1) > 0).long())


def train(accelerator: Accelerator, *, epochs: int = 2, **settings: Any) -> tuple[Result, nn.Module]:
    torch.manual_seed(0)
    net = nn.Linear(5, 2)
    objective = Supervised(net, lambda student: SGD(student.parameters(), lr=1, momentum=0.9))
    stage = Stage(objective, epochs, {"main": constant(0.1)})
    return fit([stage], Fixed(), Run(accelerator=accelerator, log_every=2, **settings)), net


def test_files_of_a_run(accelerator: Accelerator, tmp_path: Path) -> None:
    def extra(objective: Objective, figures: Mapping[str, float]) -> dict[str, Any]:
        return {"bits": {"fc": [8, 0]}}

    def probe(clock: Clock, objective: Objective) -> dict[str, float]:
        return {"top1": [70.0, 60.0][clock.epoch]} if clock.epoch < 2 else {}

    with RunFolder.open(tmp_path, {}) as folder:
        result, net = train(
            accelerator, epochs=3, folder=folder, header={"format": 1, "package": "t", "arch": "a"}, extra=extra,
            probes=[probe], prefixes={"student.": "module."}, best="top1",
        )  # fmt: skip
    state = read_checkpoint(tmp_path / "checkpoint.pth.tar")
    assert (state["epoch"], state["step"], state["arch"], state["bits"]) == (3, 9, "a", {"fc": [8, 0]})
    assert list(state["state_dict"]) == ["module.weight", "module.bias"]
    assert torch.equal(state["state_dict"]["module.weight"], net.weight)
    assert state["optimizer"]["main"]["param_groups"][0]["lr"] == 0.1
    assert read_checkpoint(tmp_path / "model_best.pth.tar")["epoch"] == 1
    assert read_checkpoint(tmp_path / "checkpoint.prev.pth.tar")["epoch"] == 2
    assert result.best == {"step": 3, "epoch": 0, "stage": 0, "top1": 70.0} and result.eval == {}
    lines = read_metrics(tmp_path / "metrics.jsonl")
    events = [f"{line['event']} {line['step']}" for line in lines]
    assert events == ["step 2", "epoch 3", "eval 3", "step 4", "step 6", "epoch 6", "eval 6", "step 8", "epoch 9"]
    assert all({"step", "epoch", "stage"} <= set(line) for line in lines)
    assert result.train["loss"] == lines[-1]["loss"]


def test_the_scaler_comes_back(accelerator: Accelerator, tmp_path: Path) -> None:
    def scaled() -> None:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2)

    scaled()
    _, unbroken = train(accelerator)
    scale = accelerator.scaler.get_scale()
    scaled()
    with RunFolder.open(tmp_path, {}) as folder:
        train(accelerator, folder=folder, max_steps=3)
        scaled()
        _, resumed = train(accelerator, folder=folder, resume=read_checkpoint(folder.checkpoint))
    assert accelerator.scaler.get_scale() == scale == 64.0 * 2**3
    assert torch.equal(unbroken.weight, resumed.weight)


def test_bf16_on_the_cpu() -> None:
    result, net = train(make_accelerator("bf16", cpu=True), epochs=20)
    assert net.weight.dtype == torch.float32 and result.train["top1"] > 90


@pytest.mark.slow
def test_a_compiled_run_resumes_exactly(accelerator: Accelerator, tmp_path: Path) -> None:
    _, unbroken = train(accelerator, epochs=4, compile=True)
    with RunFolder.open(tmp_path, {}) as folder:
        train(accelerator, epochs=4, compile=True, folder=folder, max_steps=7)
        _, resumed = train(accelerator, epochs=4, compile=True, resume=read_checkpoint(folder.checkpoint))
    assert torch.equal(unbroken.weight, resumed.weight)


def damaged(state: dict[str, Any], kind: str) -> dict[str, Any]:
    if kind == "weights":
        state["state_dict"] = {"module.other": torch.zeros(3)}
    elif kind == "shape":
        state["state_dict"]["student.weight"] = torch.zeros(7, 5)
    elif kind == "integers":
        state["state_dict"]["student.weight"] = state["state_dict"]["student.weight"].long()
    elif kind == "complex":
        state["state_dict"]["student.bias"] = state["state_dict"]["student.bias"] + 1j
    elif kind == "momentum":
        state["optimizer"]["main"]["state"][0]["momentum_buffer"] = torch.zeros(4, 5, dtype=torch.int32)
    elif kind == "optimizer":
        state["optimizer"]["main"]["param_groups"].append({"params": [2]})
    elif kind == "optimizers":
        state["optimizer"]["second"] = state["optimizer"]["main"]
    elif kind == "arch":
        state["arch"] = "other"
    elif kind == "batch":
        state["run"]["global_batch"] = 8
    elif kind == "authors":
        state = {"state_dict": state["state_dict"], "epoch": 3, "best_acc": 90.0}
    elif kind == "beyond":
        state["position"]["epoch"] = 7
    elif kind == "unnamed":  # of the release before checkpoints named theirs
        del state["release"]
    elif kind == "later":
        state |= {"release": "9.1.2", "position": "told otherwise then"}
    return state


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weights", "do not fit this net"),
        ("shape", "do not fit this net"),
        ("integers", r"student.weight holds integers \(int64\) where the net has floats"),
        ("complex", r"student.bias holds complex numbers \(complex64\) where the net has floats"),
        ("momentum", "optimizer main is another method's: its momentum is not of its parameter's type"),
        ("optimizer", "optimizer main is another method's"),
        ("optimizers", r"has optimizers \['main', 'second'\]"),
        ("arch", "arch is other, this run's a"),
        ("batch", "global_batch 8, this run has 6"),
        ("authors", "weights but no run"),
        ("beyond", "beyond the"),
        ("unnamed", rf"release 0\.1\.0 wrote .* release {__version__} .*pip install lowbit-t==0\.1\.0"),
        ("later", r"release 9\.1\.2 wrote"),
    ],
)
def test_refuses_to_resume(accelerator: Accelerator, tmp_path: Path, kind: str, words: str) -> None:
    header = {"format": 1, "package": "t", "arch": "a"}
    with RunFolder.open(tmp_path, {}) as folder:
        train(accelerator, folder=folder, max_steps=2, header=header)
        state = damaged(read_checkpoint(folder.checkpoint), kind)
        with pytest.raises(InputError, match=words) as caught:
            train(accelerator, folder=folder, resume=state, header=header)
    assert "\n" not in str(caught.value)


def test_goes_on_with_the_run_of_a_patch_release(accelerator: Accelerator, tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, {}) as folder:
        train(accelerator, folder=folder, max_steps=2)
        state = read_checkpoint(folder.checkpoint)
        assert state["release"] == __version__
        result, _ = train(accelerator, folder=folder, resume={**state, "release": f"{__version__}1"})
    assert result.finished


@pytest.mark.parametrize(("settings", "words"), [({"accumulate": 0}, "0 parts"), ({"epochs": 0}, "0.* epochs")])
def test_refuses_numbers_out_of_range(accelerator: Accelerator, settings: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        train(accelerator, **settings)  # type: ignore[arg-type]
