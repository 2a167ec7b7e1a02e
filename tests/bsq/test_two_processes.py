"""Two processes, with gloo, train what one does: float64, a ragged last batch of odd size. Once under torchrun."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.checkpoint.read import read_checkpoint

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--float64", "--limit-train", "113", "--limit-eval", "50")
SGD = ("--train-batch", "32", "--test-batch", "20", "--epochs", "2", "--schedule", "1", "--lr", "0.01")
PRUNE = ("--Nbits", "6", "--Prun_Int", "1", "--L1", "--act-range", "running")


def torchrun(*args: object) -> str:
    """Run a command line on two processes as a user does; what it says on stdout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0", "ACCELERATE_USE_CPU": "true"}
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "bsq")
    done = subprocess.run(
        [*program, *map(str, args)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def check(one: str, several: str, ranges: int, same_run: Callable[..., None], folder: Path) -> None:
    """What one process and two said, and their folders `one` and `two`."""
    same_run(folder / "one", folder / "two", 1e-9)
    state = read_checkpoint(folder / "two/checkpoint.pth.tar")
    assert state["step"] == 8 and state["state_dict"]["module.bn1.weight"].dtype == torch.float64
    found = [value for key, value in state["state_dict"].items() if key.endswith(".largest")]
    assert len(found) == ranges and all(value > 0 for value in found)
    accuracies = [[text for text in said.splitlines() if "Acc" in text] for said in (one, several)]
    assert accuracies[0] == accuracies[1]


@pytest.mark.heavy
def test_torchrun_trains_what_one_process_does(
    digits_run: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    line = ("train", *NET, *SGD, "--model", digits_run / "float/checkpoint.pth.tar")
    one = bsq(*line, "-c", tmp_path / "one").stdout
    check(one, torchrun(*line, "-c", tmp_path / "two"), 0, same_run, tmp_path)


def test_two_processes_prune_as_one_does(
    digits_run: Path, bsq: Bsq, processes: Any, same_run: Callable[..., None], tmp_path: Path
) -> None:
    """Bit training with running ranges too, which follow the maximum over both."""
    line = ("cifar_prune_STE", *NET, *SGD, *PRUNE, "--model", digits_run / "float/checkpoint.pth.tar")
    one = bsq(*line, "-c", tmp_path / "one").stdout
    two = processes.start((*line, "-c", tmp_path / "two"), world=2).wait(0, 0)
    check(one, two.said(), 6, same_run, tmp_path)
    assert two.said(1) == ""
