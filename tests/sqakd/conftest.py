"""Shared by SQAKD's tests: recorded numbers, command lines, runs on the digits."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from in_process import runner

from sqakd.cli import cli

CORE = runpy.run_path(str(Path(__file__).parents[1] / "core/conftest.py"))


@pytest.fixture(scope="session")
def recorded(golden: Callable[[str], Path]) -> Any:
    """Recorded numbers by file, `recorded["kd"]["kl.T4.loss"]`, and how their inputs are made."""
    return CORE["Recorded"](golden("sqakd"))


@pytest.fixture(scope="session")
def sqakd() -> Callable[..., Result]:
    """`sqakd("train_fp", "--dry-run")`; `code=2` expects that exit code."""
    return runner(cli)


Line = tuple[object, ...]


@pytest.fixture(scope="session")
def few() -> Line:
    """Options of short runs: 100 digits, 8 steps an epoch, the last of them of 9 pictures."""
    return ("--dataset", "digits", "--arch", "cifar_resnet8_1x1", "--epochs", 2, "--batch_size", 13, "--limit-train",
            100, "--limit-eval", 60, "--calibration", 32, "--print-freq", 2)  # fmt: skip


@pytest.fixture(scope="session")
def teacher(sqakd: Callable[..., Result], few: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a short float training."""
    folder = tmp_path_factory.mktemp("fp")
    sqakd("train_fp", *few, "--lr_m", 0.05, "--log_dir", folder)
    return folder / "checkpoint/last_checkpoint.pth"


@pytest.fixture(scope="session")
def student_line(few: Line, teacher: Path) -> Line:
    """SQAKD at 2 bits, EWGS, without labels."""
    return ("train_quant", *few, "--wbits", 2, "--abits", 2, "--lr_q", 1e-3, "--load_pretrain", "True",
            "--pretrain_path", teacher, "--distill", "kd", "--teacher_path", teacher)  # fmt: skip


@pytest.fixture(scope="session")
def student(sqakd: Callable[..., Result], student_line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a run."""
    folder = tmp_path_factory.mktemp("student")
    sqakd(*student_line, "--output", folder)
    return folder
