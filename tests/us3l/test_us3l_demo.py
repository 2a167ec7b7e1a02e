"""`us3l demo`: its table, its verdict, its folder; the whole of it is marked slow."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from lowbit.demo import is_demo, prepare
from lowbit.errors import Stopped
from us3l.commands import demo

Us3l = Callable[..., Result]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An epoch of each training on a part of the digits, two widths."""
    few = {"limit_train": 32, "limit_eval": 20}
    monkeypatch.setattr("lowbit.demo.prepare", lambda *given: dataclasses.replace(prepare(*given), **few))
    config = tmp_path / "short.yaml"
    config.write_text(
        f"BASE_CONFIG: {demo.CONFIG}\nTRAIN: {{EPOCHS: 1}}\nSSL: {{SETTING: {{DIM: 16, HIDDEN_DIM: 16}}}}\n"
    )
    monkeypatch.setattr(demo, "CONFIG", str(config))
    monkeypatch.setattr(demo, "WIDTHS", (0.25, 1.0))
    monkeypatch.setattr(demo, "PROBE", {**demo.PROBE, "probe_epochs": 2})


@pytest.mark.usefixtures("short")
def test_files_table_and_verdict(us3l: Us3l, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is set beyond reach, so that the exit code is seen to depend on it; the slow test meets the real one."""
    monkeypatch.setattr(demo, "NEEDED", 90.0)
    out = tmp_path / "demo"
    said = us3l("demo", "--output", out, code=1).stdout
    lines = (out / "table.md").read_text().splitlines()
    assert said.startswith("\n".join(lines)) and "shows nothing" in said and len(lines) == 4
    assert lines[0].startswith("| width | MACs, M | probe trained at each, batch norm re-estimated: one net | ")
    result = json.loads((out / "result.json").read_text())
    rows = [(row["method"], row["variant"]) for row in result["rows"]]
    assert rows == [(method, width) for method in ("one net", "trained alone") for width in ("0.25", "1")]
    assert [(net["method"], net["variant"]) for net in result["nets"]] == rows and not result["useful"]
    assert all(line.split(" | ")[0] == f"| {width}" for line, width in zip(lines[2:], ("0.25", "1"), strict=True))
    names = {path.name for path in out.iterdir()}
    assert {"one net", "width 0.25", "width 1", "random", "demo.png", "table.md", "result.json"} <= names
    folders = ("one net", "width 0.25")
    configs = [json.loads((out / name / "config.json").read_text())["config"] for name in folders]
    assert [config["MODEL"]["OFA"].pop("NUM_SAMPLE_TRAINING") for config in configs] == [3, 1]
    assert [config["MODEL"]["OFA"].pop("WIDTH_MULT") for config in configs] == [1.0, 0.25]
    assert configs[0] == configs[1]  # like for like
    assert is_demo(out)  # so that the next demo replaces it


def test_one_process_only_and_no_other_folder(us3l: Us3l, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"command": "ssl"}')
    assert "--overwrite" in us3l("demo", "--output", tmp_path, code=2).stderr  # another run is not replaced
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in us3l("demo", "--output", tmp_path / "demo", code=2).stderr


def test_stopped(us3l: Us3l, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its trainings could be resumed; the demo cannot."""

    def stopped(*args: Any) -> None:
        raise Stopped("stopped after step 3, saved; go on with --resume auto")

    monkeypatch.setattr(demo.pretrain, "pretrain", stopped)
    said = us3l("demo", "--output", tmp_path / "demo", code=75).stderr
    assert "anew" in said and "--resume" not in said


@pytest.mark.slow
def test_the_whole_demo(us3l: Us3l, tmp_path: Path) -> None:
    start = time.perf_counter()
    us3l("demo", "--output", tmp_path / "demo")
    assert time.perf_counter() - start < 240
    result = json.loads((tmp_path / "demo/result.json").read_text())
    assert result["useful"] and len(result["rows"]) == 8
    top1 = {(row["method"], row["variant"]): row["top1"] for row in result["rows"]}
    assert top1["one net", "0.25"] > 80 and top1["one net", "1"] > 85
