"""`ssql ssl` as processes: killed or stopped inside an epoch and resumed it is the unbroken run; two agree."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.metrics import read_metrics

Line = tuple[object, ...]
Same = Callable[[Path, Path], None]


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "step"]


def test_kill_9_inside_an_epoch(
    processes: Any, digits_line: Line, digits_run: tuple[Path, Result], same_run: Same, tmp_path: Path
) -> None:
    """Between the two forwards of a step; a line of metrics stands behind the last save and is written again."""
    line = (*digits_line, "--output", tmp_path, "--save-every", 5)
    processes.start(line, kill=("observed", 7)).wait(-signal.SIGKILL)
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["step"] == 5
    assert [step["step"] for step in steps_of(tmp_path)] == [2, 4, 6]
    said = processes.start((*line, "--resume", "auto")).wait(0).said()
    same_run(tmp_path, digits_run[0])
    assert digits_run[1].stdout.endswith(said)


def test_sigterm_leaves_75_and_goes_on(
    processes: Any, digits_line: Line, digits_run: tuple[Path, Result], same_run: Same, tmp_path: Path
) -> None:
    started = processes.start((*digits_line, "--output", tmp_path))
    for _ in range(3000):
        if (tmp_path / "metrics.jsonl").exists():
            break
        time.sleep(0.01)
    os.kill(started.pids[0], signal.SIGTERM)
    assert "stopped" in started.wait(75).said(stream="err")
    processes.start((*digits_line, "--output", tmp_path, "--resume", "auto")).wait(0)
    same_run(tmp_path, digits_run[0])


def test_two_processes_draw_the_same_bits_and_hold_equal_weights(
    processes: Any, digits_line: Line, digits_run: tuple[Path, Result], tmp_path: Path
) -> None:
    """Half of each batch on each; their batch norm follows its own half, all else is one net."""
    run, kept = tmp_path / "run", tmp_path / "weights"
    line = (*digits_line, "--output", run, "TRAIN.BATCH_SIZE=16", "TRAIN.PRINT_FREQ=1")
    done = processes.start(line, world=2, weights=str(kept)).wait(0, 0)
    assert done.said(1) == "" and json.loads((run / "result.json").read_text())["global_batch"] == 32
    one, other = (torch.load(f"{kept}.{rank}") for rank in range(2))
    assert torch.equal(one["encoder_q.conv1.weight"], other["encoder_q.conv1.weight"])
    differing = {name.rpartition(".")[2] for name in one if not torch.equal(one[name], other[name])}
    assert differing == {"running_mean", "running_var"}
    bits = [(step["w_bits"], step["a_bits"]) for step in steps_of(run)]  # means over both
    assert all(value == int(value) for pair in bits for value in pair) and len(set(bits)) > 3
    alone = [value for step in steps_of(digits_run[0]) for value in (step["w_bits"], step["a_bits"])]  # of two steps
    pairs = zip(bits[::2], bits[1::2], [32, 24] * 2, strict=True)  # pictures of the second: an epoch has 120
    means = [(32 * x + n * y) / (32 + n) for first, second, n in pairs for x, y in zip(first, second, strict=True)]
    assert means == pytest.approx(alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "every", "world"),
    [
        ("SSQL_SimSiam", None, 1),
        ("SSQL_SimSiam", 1, 1),
        ("SSQL_SimSiam", 3, 2),
        ("SSQL_BYOL", 3, 1),
        ("SSQL_MoCo", 2, 1),
        ("SSQL_MoCo", 3, 2),
        ("SSQL_SimCLR", 3, 1),
        ("RSSQL_SimSiam", 3, 1),
    ],
)
def test_kill_9_everywhere(
    kind: str, every: int | None, world: int, processes: Any, digits_line: Line, same_run: Same, tmp_path: Path
) -> None:
    """One run, killed before, in and after every step and at each epoch's end, resumed each time."""
    line = (*digits_line, f"SSL.TYPE={kind}", f"TRAIN.BATCH_SIZE={32 // world}", "--output")
    processes.start((*line, tmp_path / "whole"), world).wait(*[0] * world)
    steps = json.loads((tmp_path / "whole/result.json").read_text())["steps"]
    saves = () if every is None else ("--save-every", every)
    broken = (*line, tmp_path / "broken", *saves, "--resume", "auto")
    for done in range(steps + 1):
        ended = ("probe",) if done in (steps // 2, steps) else ()
        for place in (*ended, *(("begun", "observed") if done < steps else ("end",))):
            processes.start(broken, world, kill=(place, done)).wait(*[-signal.SIGKILL] * world)
    processes.start(broken, world).wait(*[0] * world)
    same_run(tmp_path / "whole", tmp_path / "broken")
