"""`ssql demo`: its table, its verdict, its folder; the whole of it is marked slow."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lowbit.demo import is_demo, prepare, verdict_without_labels
from lowbit.errors import Stopped
from ssql.bitwidths import parse_bits
from ssql.commands import demo

Ssql = Callable[..., Result]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch of each training on a part of the digits, two widths."""
    few = {"limit_train": 240, "limit_eval": 60}
    monkeypatch.setattr("lowbit.demo.prepare", lambda *given: dataclasses.replace(prepare(*given), **few))
    monkeypatch.setattr(demo, "KEYS", ("TRAIN.EPOCHS=1",))
    monkeypatch.setattr(demo, "BITS", parse_bits("fp,2w4f"))
    monkeypatch.setattr(demo, "PROBE", {**demo.PROBE, "probe_epochs": 2})


@pytest.mark.usefixtures("short")
def test_files_table_and_verdict(ssql: Ssql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is set beyond reach, so that the exit code is seen to depend on it; the slow test meets the real one."""
    monkeypatch.setattr(demo, "NEEDED", 90.0)
    out = tmp_path / "demo"
    said = ssql("demo", "--output", out, code=1).stdout
    lines = (out / "table.md").read_text().splitlines()
    assert said.startswith("\n".join(lines)) and "shows nothing" in said
    assert lines[0].startswith("| bits | float probe: SimSiam | float probe: SSQL |") and lines[3].startswith(
        "| 2w4f |"
    )
    result = json.loads((out / "result.json").read_text())
    assert [(row["method"], row["variant"]) for row in result["rows"]] == [
        (method, variant) for method in ("SimSiam", "SSQL") for variant in ("fp", "2w4f")
    ]
    assert not result["useful"] and set(result["nets"]) == {"SimSiam", "SSQL"}
    names = {path.name for path in out.iterdir()}
    assert {"SimSiam", "SSQL", "random", "demo.png", "table.md", "result.json"} <= names
    assert "k-NN" in (out / "SSQL/record.txt").read_text() and (out / "SSQL/sweep/sweep.csv").exists()
    configs = [json.loads((out / f"{name}/config.json").read_text())["config"] for name in ("SimSiam", "SSQL")]
    assert [config["SSL"].pop("TYPE") for config in configs] == ["SimSiam", "SSQL_SimSiam"]
    assert configs[0] == configs[1]  # like for like
    assert is_demo(out)  # so that the next demo replaces it


def test_a_collapsed_or_useless_net_is_no_success() -> None:
    def outcome(top1: float, spread: float) -> tuple[bool, str]:
        net = verdict_without_labels({"probe_top1": top1}, {"z_std_relative": spread}, {"probe_top1": 60.0})
        return net["useful"], net["said"]

    assert outcome(70.0, 0.51)[0] and not outcome(69.9, 0.9)[0] and "shows nothing" in outcome(69.9, 0.9)[1]
    assert not outcome(80.0, 0.5)[0] and not outcome(80.0, float("nan"))[0] and "collapsed" in outcome(80.0, 0.5)[1]


def test_one_process_only_and_no_other_folder(ssql: Ssql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"command": "ssl"}')
    assert "--overwrite" in ssql("demo", "--output", tmp_path, code=2).stderr  # another run is not replaced
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in ssql("demo", "--output", tmp_path / "demo", code=2).stderr


def test_stopped(ssql: Ssql, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training could be resumed; the demo cannot."""

    def stopped(*args: Any) -> None:
        raise Stopped("stopped after step 3, saved; go on with --resume auto")

    monkeypatch.setattr(demo.pretrain, "pretrain", stopped)
    said = ssql("demo", "--output", tmp_path / "demo", code=75).stderr
    assert "anew" in said and "--resume" not in said


@pytest.mark.slow
def test_the_whole_demo(ssql: Ssql, tmp_path: Path) -> None:
    start = time.perf_counter()
    ssql("demo", "--output", tmp_path / "demo")
    assert time.perf_counter() - start < 240
    result = json.loads((tmp_path / "demo/result.json").read_text())
    assert result["useful"] and len(result["rows"]) == 14
    top1 = {(row["method"], row["variant"]): row["top1"] for row in result["rows"]}
    assert top1["SSQL", "fp"] > 90 and top1["SSQL", "2w4f"] > 85
