"""What a person sees of a run on a pseudo-terminal, and without one."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD

from lowbit.data.batch import Batch
from lowbit.train import console
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Run, fit
from lowbit.train.progress import bar
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import constant
from lowbit.train.supervised import Supervised

Terminal = Callable[..., Any]


class Five:
    """Five batches of four pictures."""

    global_batch = last_batch = 4

    def __len__(self) -> int:
        return 5

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        for _ in range(start, 5):
            yield Batch((torch.ones(4, 2),), torch.arange(4), torch.zeros(4, dtype=torch.long))


def train(accelerator: Accelerator, folder: Path, said: Callable[[Clock], object]) -> None:
    """Two epochs, with a remark in each and a top-1; `said`: what else a probe says."""
    torch.manual_seed(0)
    objective = Supervised(nn.Linear(2, 2), lambda student: SGD(student.parameters(), lr=1))

    def probe(clock: Clock, _: Objective) -> dict[str, float]:
        logging.getLogger("toy").warning("a remark of %d", clock.epoch)
        said(clock)
        return {"top1": 38.3 - clock.epoch}

    console.configure_logging("toy")
    console.checked()
    with RunFolder.open(folder, {}) as opened:
        run = Run(accelerator=accelerator, log_every=2, folder=opened, probes=[probe], best="top1")
        fit([Stage(objective, 2, {"main": constant(0.1)})], Five(), run)
        console.say("the end")


def record(clock: Clock) -> None:
    console.say(f"Test Acc: {38.3 - clock.epoch:.2f}")


RATE = r"[\d,.]+ pictures/s"
EPOCHS = [
    rf"epoch 1/2 · loss 0.\d+ · top-1 38.3 % · {RATE} · 0:00 left",
    rf"epoch 2/2 · loss 0.\d+ · top-1 37.3 % · {RATE} · 0:00 in all",
]
REMARKS = ["a remark of 0", "a remark of 1"]


def match(lines: list[str], patterns: list[str]) -> None:
    assert len(lines) == len(patterns), lines
    for line, pattern in zip(lines, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


@pytest.mark.parametrize("columns", [80, 120, 30])
def test_the_record_is_shown_once_above_one_bar(
    columns: int, terminal: Terminal, accelerator: Accelerator, tmp_path: Path
) -> None:
    screen = terminal(columns, lambda: train(accelerator, tmp_path, record))
    remarks = zip(REMARKS, ("Test Acc: 38.30", "Test Acc: 37.30"), strict=True)
    assert screen.lines == [*(line for pair in remarks for line in pair), "the end"]
    if columns > 30:
        assert len(set(screen.bars)) >= 10 and "best" not in screen.bars[0] and "best 38.3 %" in screen.bars[-1]
        drawn = {"█" in line or "░" in line for line in screen.bars}
        assert drawn == {True}
    else:
        assert all(len(state) <= 29 for state in screen.states) and "epoch 2/2" in screen.states[-1]
    log = (tmp_path / "train.log").read_text(encoding="utf-8")  # everything is kept there
    assert log.count("· step ") == 5 and re.search(EPOCHS[1], log)


def test_a_record_without_figures_leaves_them_to_the_log(
    terminal: Terminal, accelerator: Accelerator, tmp_path: Path
) -> None:
    screen = terminal(80, lambda: train(accelerator, tmp_path, lambda clock: None))
    match(screen.lines, [REMARKS[0], EPOCHS[0], REMARKS[1], EPOCHS[1], "the end"])


def test_a_record_in_a_file_leaves_figures_to_the_log(
    terminal: Terminal, accelerator: Accelerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = terminal(80, lambda: train(accelerator, tmp_path, record), record=False)
    match(screen.lines, [REMARKS[0], EPOCHS[0], REMARKS[1], EPOCHS[1]])
    assert screen.bars and capsys.readouterr().out.splitlines() == ["Test Acc: 38.30", "Test Acc: 37.30", "the end"]


STEPS = [
    rf"epoch {e}/2 · step {s}/5 · loss 0.\d+ · {RATE}( · 0:00 left)?"
    for e, s in ((1, 2), (1, 4), (2, 1), (2, 3), (2, 5))
]


def test_a_terminal_that_takes_nothing_back(terminal: Terminal, accelerator: Accelerator, tmp_path: Path) -> None:
    screen = terminal(80, lambda: train(accelerator, tmp_path, record), kind="dumb")
    shown = [(remark, f"Test Acc: {figure}") for remark, figure in zip(REMARKS, ("38.30", "37.30"), strict=True)]
    match(screen.lines, [*STEPS[:2], *shown[0], *STEPS[2:], *shown[1], "the end"])
    assert screen.states == []


def test_without_a_terminal_a_line_per_interval(
    accelerator: Accelerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(accelerator, tmp_path, record)
    said = capsys.readouterr()
    assert said.out.splitlines() == ["Test Acc: 38.30", "Test Acc: 37.30", "the end"]
    match(said.err.splitlines(), [*STEPS[:2], REMARKS[0], EPOCHS[0], *STEPS[2:], REMARKS[1], EPOCHS[1]])
    assert said.err.replace("\n", "").isprintable()


def test_what_is_counted_returns_to_what_was_shown(terminal: Terminal) -> None:
    def program() -> None:
        console.show("before")
        for number in console.counted(range(3), "evaluation", 3):
            if number == 1:
                console.report("a line")
        console.report("the end")
        console.show()

    screen = terminal(80, program)
    assert screen.lines == ["a line", "the end"]
    assert [*dict.fromkeys(screen.states)] == ["before", *(f"evaluation {n}/3 · before" for n in range(3))]


def test_other_processes_show_nothing(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    screen = terminal(80, lambda: console.show("a bar"))
    assert screen.lines == screen.states == []


@pytest.mark.parametrize(
    ("width", "encoding", "shown"),
    [
        (79, "utf-8", "epoch 1/3 ███████████████░░░░░░░░░░░░░░░ · loss 2.21 · 0:12 left"),
        (43, "ascii", "epoch 1/3 ####..... · loss 2.21 · 0:12 left"),
        (39, "utf-8", "epoch 1/3  50% · loss 2.21 · 0:12 left"),
        (20, "utf-8", "epoch 1/3  50% · los"),
    ],
)
def test_the_bar_takes_what_room_there_is(
    width: int, encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", SimpleNamespace(encoding=encoding))
        assert bar("epoch 1/3", 0.5, "loss 2.21 · 0:12 left", width) == shown


def test_what_is_loaded_is_shown_before_torch_is() -> None:
    """Where torch is missing the line has been shown: on a terminal, of a process of its own, and taken away again."""
    script = """
import os, pty, sys
pid, leader = pty.fork()
if pid == 0:
    sys.modules["torch"] = None
    from lowbit.cli.program import Group
    import click
    @click.group(cls=Group, name="toy")
    def toy(): pass
    @toy.command("go")
    def go():
        import torch
    toy(["go"], prog_name="toy")
written = b""
try:
    while found := os.read(leader, 4096): written += found
except OSError: pass
os.waitpid(pid, 0)
sys.stdout.buffer.write(written)
"""
    env = {**os.environ, "TERM": "xterm"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=env)
    first, _, rest = done.stdout.decode().partition("\r\n")
    assert "toy go: loading torch and the net …" in first and "import of torch halted" in rest
    assert first.rpartition("\r")[2].startswith("Traceback")
