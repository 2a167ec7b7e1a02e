"""`s2bnn main_lincls` as processes: killed and resumed it is the unbroken run; two processes are one."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

Same = Callable[[Path, Path], None]


@pytest.fixture(scope="module")
def line(checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """2 epochs of 4 steps, without its folder."""
    file = tmp_path_factory.mktemp("pretrained") / "a.pth.tar"
    torch.save(checkpoint(2), file)
    limits = ("--dataset", "digits", "--limit-train", 120, "--limit-eval", 60, "-b", 32, "-p", 2)
    return ("main_lincls", "here", *limits, "--epochs", 2, "--schedule", 1, "--lr", 0.5, "--pretrained", file)


@pytest.fixture(scope="module")
def whole(s2bnn: Callable[..., Result], line: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    s2bnn(*line, "--output", folder)
    return folder


@pytest.mark.parametrize(("place", "done"), [("step", 3), ("probe", 4), ("end", 8)])
def test_kill_9(processes: Any, line: Any, whole: Path, same_run: Same, tmp_path: Path, place: str, done: int) -> None:
    killed = (*line, "--output", tmp_path, "--save-every", 2, "--resume", "auto")
    processes.start(killed, kill=(place, done)).wait(-signal.SIGKILL)
    processes.start((*line, "--output", tmp_path, "--resume", "auto")).wait(0)
    same_run(whole, tmp_path)


def test_two_processes_are_one(processes: Any, line: Any, whole: Path, tmp_path: Path) -> None:
    """Half of each batch of the machine on each, and a share of the evaluated pictures."""
    run, kept = tmp_path / "run", tmp_path / "weights"
    done = processes.start((*line, "--output", run), world=2, weights=str(kept)).wait(0, 0)
    assert done.said(1) == ""
    first, second = (torch.load(f"{kept}.{rank}") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    alone = torch.load(whole / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    assert torch.allclose(first["student.net.fc.weight"], alone["fc.weight"], rtol=1e-4, atol=1e-5)
    both, one = (json.loads((folder / "result.json").read_text()) for folder in (run, whole))
    assert (both["global_batch"], both["batch_per_process"]) == (32, 16) and both["top1"] == one["top1"]
    assert both["loss"] == pytest.approx(one["loss"], rel=1e-4)
