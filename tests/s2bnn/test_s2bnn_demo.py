"""`s2bnn demo`: its table, its verdict, its folder; the whole of it is marked slow."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result

from lowbit.demo import is_demo, prepare
from s2bnn.commands import demo

S2bnn = Callable[..., Result]


def test_files_table_and_verdict(s2bnn: S2bnn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of each training; the bar is set beyond reach, so that the exit code is seen to depend on it."""
    few = {"limit_train": 96, "limit_eval": 60}
    monkeypatch.setattr("lowbit.demo.prepare", lambda *given: dataclasses.replace(prepare(*given), **few))
    monkeypatch.setattr(demo, "EPOCHS", dict.fromkeys(range(3), 1))
    monkeypatch.setattr(demo, "PROBE", {**demo.PROBE, "epochs": 2})
    monkeypatch.setattr(demo, "NEEDED", 90.0)
    out = tmp_path / "demo"
    said = s2bnn("demo", "--output", out, code=1).stdout
    lines = (out / "table.md").read_text().splitlines()
    assert said.startswith("\n".join(lines)) and "shows nothing" in said and len(lines) == 4
    assert "distillation" in lines[0] and lines[2].startswith("| activations |")
    result = json.loads((out / "result.json").read_text())
    expected = [("teacher", 0), *((name, step) for name in ("distillation", "contrastive") for step in (1, 2))]
    assert [(row["method"], row["step"]) for row in result["rows"]] == expected
    assert not result["useful"] and len(result["random"]) == 3 and result["seed"] == 0
    assert is_demo(out) and (out / "demo.png").exists()
    configs = {
        name: json.loads((out / name / "config.json").read_text()) for name in ("distillation 2", "contrastive 2")
    }
    differing = {key for key, value in configs["distillation 2"].items() if configs["contrastive 2"].get(key) != value}
    assert differing - {"output", "model_path"} <= {"method", "teacher_path", "teacher"}  # like for like
    starts = [torch.load(out / f"{name} 1/checkpoint.pth.tar", weights_only=True) for name in demo.METHODS]
    assert {start["binarization"] for start in starts} == {1}


@pytest.mark.slow
def test_the_whole_demo(s2bnn: S2bnn, tmp_path: Path) -> None:
    start = time.perf_counter()
    s2bnn("demo", "--output", tmp_path / "demo")
    assert time.perf_counter() - start < 240
    result = json.loads((tmp_path / "demo/result.json").read_text())
    top1 = {(row["method"], row["step"]): row[demo.FIGURE] for row in result["rows"]}
    assert result["useful"] and top1["distillation", 2] > top1["contrastive", 2] > 60
