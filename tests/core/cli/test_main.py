"""The program `lowbit`: its functions, its plots, that help needs no torch, and that it runs as a module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import lowbit
from lowbit.cli.main import cli


def test_each_command_is_a_function() -> None:
    assert {"show", "predict", "plot", "doctor"} == set(cli.commands) <= set(dir(lowbit))
    assert all(callable(getattr(lowbit, name)) for name in cli.commands)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = lowbit.nothing  # type: ignore[attr-defined]


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.argv = ['lowbit', {!r}, '--help']; import runpy\n"
    code += "try: runpy.run_module('lowbit', run_name='__main__', alter_sys=True)\n"
    code += "finally: assert not {{'torch', 'numpy', 'timm'}} & set(sys.modules)"
    for command in ("show", "predict"):
        done = subprocess.run([sys.executable, "-c", code.format(command)], capture_output=True, text=True)
        assert done.returncode == 0 and f"Usage: lowbit {command}" in done.stdout, done.stderr


def test_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        lines = [{"event": "epoch", "step": n, "epoch": n, "stage": 0, "lr": 0.1, "loss": 1 / n} for n in (1, 2)]
        (tmp_path / run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert CliRunner().invoke(cli, ["plot", "a", "b"]).stdout == "curves.png\n"
    assert Path("curves.png").read_bytes()[1:4] == b"PNG"
    for line, says in ((["a"], "--overwrite"), (["nowhere", "--output", "x.png"], "nowhere"), ([], "RUN")):
        found = CliRunner().invoke(cli, ["plot", *line])
        assert found.exit_code == 2 and says in found.stderr and found.stderr.count("\n") == 1
    assert not Path("x.png").exists()
