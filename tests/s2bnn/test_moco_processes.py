"""`main_moco` as processes: killed inside an epoch and resumed it is the unbroken run; two hold equal weights."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.models.create import create_model
from lowbit.models.heads import projector
from s2bnn.options import METHODS

Line = list[object]
ARCH = "cifar_resnet8_1x1"
CASES = [(METHODS[0], 2), (METHODS[1], 1), (METHODS[2], 0), (METHODS[2], 1), (METHODS[2], 2)]
OTHERS = [(method, step) for method in METHODS for step in (0, 1, 2) if (method, step) not in CASES]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file in MoCo's layout, whose embedding is wider than the student's."""
    torch.manual_seed(0)
    net: Any = create_model(ARCH, num_classes=1)
    net.fc = projector(64, 64, 24, 2)
    path = tmp_path_factory.mktemp("teacher") / "moco.pth.tar"
    torch.save({"state_dict": {f"module.encoder_q.{k}": v for k, v in net.state_dict().items()}}, path)
    return path


@pytest.fixture(scope="module")
def line_of(teacher: Path) -> Callable[..., Line]:
    """A command line without its folder: 2 epochs of 2 steps."""

    def line(method: str, step: int, *more: object) -> Line:
        learns = ("--teacher-path", teacher, "-a", ARCH) if "distillation" in method else ()
        return [
            "main_moco", "here", "--dataset", "digits", "--limit-train", 16, "--limit-eval", 12, "--epochs", 2,
            "--moco-k", 12, "--moco-dim", 16, "--mlp", "--student", ARCH, "-p", 1, "--probe-every", 2, "--cos",
            "--aug-plus", "--method", method, "--step", step, *learns, *more,
        ]  # fmt: skip

    return line


@pytest.mark.parametrize(
    ("method", "step"), [*CASES, *(pytest.param(*case, marks=pytest.mark.heavy) for case in OTHERS)]
)
def test_each_method_and_step_is_killed_and_resumed(
    method: str, step: int, processes: Any, s2bnn: Callable[..., Result], line_of: Callable[..., Line],
    same_run: Callable[[Path, Path], None], tmp_path: Path,
) -> None:  # fmt: skip
    """The kill falls inside the fourth step, before its optimizer; the third is in the queue already."""
    line = line_of(method, step, "-b", 8, "--over", "queue" if (method, step) == (METHODS[2], 2) else "channels")
    broken = (*line, "--output", tmp_path / "broken", "--save-every", 1)
    killed = processes.start(broken, kill=("step", 3))
    s2bnn(*line, "--output", tmp_path / "whole")
    killed.wait(-signal.SIGKILL)
    saved = torch.load(tmp_path / "broken/checkpoint.pth.tar", weights_only=True)
    assert saved["step"] == 3 and not any(key.startswith("teacher.") for key in saved["state_dict"])
    s2bnn(*broken, "--resume", "auto")
    same_run(tmp_path / "whole", tmp_path / "broken")
    assert json.loads((tmp_path / "whole/result.json").read_text())["steps"] == 4


def test_another_teacher_is_refused_on_resume(
    s2bnn: Callable[..., Result], line_of: Callable[..., Line], teacher: Path, tmp_path: Path
) -> None:
    line = line_of(METHODS[2], 1, "-b", 8, "--output", tmp_path / "run")
    s2bnn(*line, "--max-steps", 1)
    state = torch.load(teacher, weights_only=True)
    state["state_dict"]["module.encoder_q.conv1.weight"] += 1
    torch.save(state, tmp_path / "other")
    changed = [tmp_path / "other" if value == teacher else value for value in line]
    said = s2bnn(*changed, "--resume", "auto", code=2).stderr
    assert "teacher" in said and said.count("\n") == 1
    s2bnn(*line, "--resume", "auto")


@pytest.mark.parametrize(("more", "differ"), [((), {"running_mean", "running_var"}), (("--sync-bn",), set())])
def test_two_processes_hold_equal_weights_and_queues(
    processes: Any, line_of: Callable[..., Line], more: tuple[str, ...], differ: set[str], tmp_path: Path
) -> None:
    """Half of a machine's batch on each; without --sync-bn batch norm's statistics, and they alone, differ."""
    run, kept = tmp_path / "run", tmp_path / "weights"
    line = line_of(METHODS[1], 2, "-b", 8, "--over", "queue", "--output", run, "--rank", 0, *more)
    done = processes.start(line, world=2, weights=str(kept)).wait(0, 0)
    assert done.said(1) == "" and json.loads((run / "result.json").read_text())["global_batch"] == 8
    assert sum(done.said(rank, "err").count("accelerate launch") for rank in (0, 1)) == 1
    first, second = (torch.load(f"{kept}.{rank}") for rank in (0, 1))
    differing = {key.rpartition(".")[2] for key in first if not torch.equal(first[key], second[key])}
    assert differing == differ
    assert {"keys.queue", "teacher_keys.queue", "projector.weight"} <= set(first)
    assert int(first["keys.queue_ptr"]) == int(first["teacher_keys.queue_ptr"]) == 4 * 8 % 12
