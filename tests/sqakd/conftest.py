"""Shared by SQAKD's tests: recorded numbers, command lines, runs on the digits."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from sqakd.cli import cli

CORE = runpy.run_path(str(Path(__file__).parents[1] / "core/conftest.py"))


@pytest.fixture(scope="session")
def recorded(golden: Callable[[str], Path]) -> Any:
    """Recorded numbers by file, `recorded["kd"]["kl.T4.loss"]`, and how their inputs are made."""
    return CORE["Recorded"](golden("sqakd"))


@pytest.fixture(scope="session")
def sqakd() -> Callable[..., Result]:
    """`sqakd("train_fp", "--dry-run")`; `code=2` expects that exit code."""

    def run(*args: object, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.stderr
        return result

    return run
