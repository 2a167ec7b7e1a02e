"""Two processes under torchrun, with gloo, train what one does: float64, a ragged last batch of odd size."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--float64", "--limit-train", "113", "--limit-eval", "50")
SGD = ("--train-batch", "32", "--test-batch", "20", "--epochs", "2", "--schedule", "1", "--lr", "0.01")
PRUNE = ("--Nbits", "6", "--Prun_Int", "1", "--L1", "--act-range", "running")


def torchrun(*args: object) -> str:
    """Run a command line on two processes; what it says on stdout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0", "ACCELERATE_USE_CPU": "true"}
    program = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "bsq")
    done = subprocess.run(
        [*program, *map(str, args)], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("command", ["train", "cifar_prune_STE"])
def test_two_processes_train_what_one_does(
    command: str, digits_run: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path
) -> None:
    """Bit training with running ranges too, which follow the maximum over both."""
    line = (command, *NET, *SGD, *(PRUNE if command != "train" else ()))
    line = (*line, "--model", digits_run / "float/checkpoint.pth.tar")
    one = bsq(*line, "-c", tmp_path / "one").stdout
    several = torchrun(*line, "-c", tmp_path / "two")
    same_run(tmp_path / "one", tmp_path / "two", 1e-9)
    state = torch.load(tmp_path / "two/checkpoint.pth.tar", weights_only=True)
    assert state["step"] == 8 and state["state_dict"]["module.bn1.weight"].dtype == torch.float64
    ranges = [value for key, value in state["state_dict"].items() if key.endswith(".largest")]
    assert len(ranges) == (6 if command != "train" else 0) and all(value > 0 for value in ranges)
    accuracies = [[text for text in said.splitlines() if "Acc" in text] for said in (one, several)]
    assert accuracies[0] == accuracies[1]
