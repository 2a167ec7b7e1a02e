"""Which epochs are due, and copies of the weights after them."""

import json
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lowbit.checkpoint.read import read_checkpoint
from lowbit.train.copies import Copies, keep_copies
from lowbit.train.epochs import Due, after_every, after_multiples, epoch_lines
from lowbit.train.folder import RunFolder
from lowbit.train.protocol import Clock, Objective


def epochs_of(due: Due, epochs: int) -> list[int]:
    return [epoch for epoch in range(epochs) if due(Clock(0, epoch, epochs, 4, 4, 0))]


@pytest.mark.parametrize(
    ("due", "epochs", "expected"),
    [
        (after_every(1), 3, [0, 1, 2]),
        (after_every(3), 8, [2, 5, 7]),
        (after_every(4), 10, [3, 7, 9]),
        (after_multiples(20, 50), 112, [0, 20, 40, 50, 60, 80, 100, 111]),
        (after_multiples(20, first=False), 45, [20, 40, 44]),
        (after_multiples(20, first=False), 1, [0]),
    ],
)
def test_due_epochs(due: Due, epochs: int, expected: list[int]) -> None:
    assert epochs_of(due, epochs) == expected


def test_copies_hold_the_weights_under_the_files_keys(tmp_path: Path) -> None:
    objective = Objective()
    objective.encoder = nn.Linear(2, 3)
    with RunFolder(tmp_path) as folder:
        header = {"format": 1, "package": "toy", "arch": "line"}
        probe = keep_copies(folder, Accelerator(cpu=True), Copies(after_multiples(2)), header, {"encoder.": "net."})
        for epoch in range(4):
            assert probe(Clock(0, epoch, 4, 5, 5, 0, done=5 * epoch + 5), objective) == {}
    names = sorted(path.name for path in tmp_path.glob("*.pth.tar"))
    assert names == [f"checkpoint_{epoch:04d}.pth.tar" for epoch in (0, 2, 3)]
    found = read_checkpoint(tmp_path / names[1])
    assert {key: value for key, value in found.items() if key != "state_dict"} == {**header, "epoch": 3, "step": 15}
    assert list(found["state_dict"]) == ["net.weight", "net.bias"]
    assert torch.equal(found["state_dict"]["net.weight"], objective.encoder.weight)


@pytest.mark.parametrize(("keep", "left"), [(0, []), (2, [10000, 10001]), (3, [9999, 10000, 10001])])
def test_the_newest_copies_stay(keep: int, left: list[int], tmp_path: Path) -> None:
    objective, header = Objective(), {"format": 1, "package": "toy", "arch": "line"}
    objective.encoder = nn.Linear(2, 3)
    others = [tmp_path / name for name in ("checkpoint.pth.tar", "checkpoint_0000.pth.tar.txt")]
    for path in others:
        path.touch()
    with RunFolder(tmp_path) as folder:
        probe = keep_copies(folder, Accelerator(cpu=True), Copies(after_every(1), keep), header, {})
        for epoch in range(9997, 10002):
            probe(Clock(0, epoch, 20000, 5, 5, 0, done=5 * epoch + 5), objective)
    copies = {f"checkpoint_{epoch}.pth.tar" for epoch in left}
    assert {path.name for path in tmp_path.glob("*.tar*")} == copies | {path.name for path in others}


def test_lines_of_an_epoch_show_a_value_that_was_not_finite(tmp_path: Path) -> None:
    """The file holds null for it."""
    lines = [{"event": "step", "epoch": 0, "step": step, "loss": loss} for step, loss in ((1, 1.0), (3, None))]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = list(epoch_lines(tmp_path / "metrics.jsonl", Clock(0, 0, 1, 3, 3, 0, done=3), {"Loss": "loss"}))
    assert found == ["Epoch: [0][1/3]\tLoss: 1.000(1.000)", "Epoch: [0][3/3]\tLoss: nan(nan)"]
