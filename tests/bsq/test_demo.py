"""`bsq demo`: its table, its verdict, its folder; the whole of it is marked slow."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bsq.commands import demo
from lowbit.demo import is_demo
from lowbit.errors import Stopped

Bsq = Callable[..., Result]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch or two of each training, from 8 bits on."""
    monkeypatch.setattr(demo, "FLOAT", dataclasses.replace(demo.FLOAT, epochs=2, schedule=(1,)))
    monkeypatch.setattr(demo, "PRUNE", dataclasses.replace(demo.PRUNE, epochs=1))
    monkeypatch.setattr(demo, "SEARCH", dataclasses.replace(demo.SEARCH, interval=1))
    monkeypatch.setattr(demo, "TUNE", dataclasses.replace(demo.TUNE, epochs=1))
    monkeypatch.setattr(demo, "BITS", (8,))


@pytest.mark.heavy
@pytest.mark.usefixtures("short")
def test_files_tables_and_verdict(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is set beyond reach, so that the exit code is seen to depend on it; the slow test meets the real one."""
    monkeypatch.setattr(demo, "NEEDED", 80.0)
    out = tmp_path / "demo"
    said = bsq("demo", "--output", out, code=1).stdout
    text = (out / "table.md").read_text()
    assert said.startswith(text.strip()) and "| 8 bits | 4 bits |" in text and "| layer3.0.conv2 | 36,864 |" in text
    assert "shows nothing" in said
    result = json.loads((out / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["float", "8 bits", "BSQ", "BSQ, fine-tuned"]
    assert not result["useful"] and result["probe_top1"] - result["probe_top1_random"] > 10
    _, eight, found, tuned = result["rows"]
    assert eight["compression"] == 4 and found["compression"] == tuned["compression"] == pytest.approx(12, rel=0.05)
    assert found["bytes"] == pytest.approx(tuned["bytes"], rel=0.01) and tuned["bytes"] < 0.6 * eight["bytes"]
    layers = result["layers"]
    assert sum(row["weights"] * row["bits"] for row in layers) == pytest.approx(
        32 * 74_800 / found["compression"], rel=0.01
    )
    assert all(len(row["ones_percent"]) == row["bits"] for row in layers)
    assert {"float", "bits8", "bsq", "finetune", "demo.png"} <= {path.name for path in out.iterdir()}
    assert "Accuracy" in (out / "bits8/record.txt").read_text()
    assert is_demo(out)  # so that the next demo replaces it
    (out / "config.json").write_text('{"command": "train"}')
    assert "--overwrite" in bsq("demo", "--output", out, code=2).stderr  # another run is not replaced


def test_one_process_only(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in bsq("demo", "--output", tmp_path / "demo", code=2).stderr


def test_stopped(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training could be resumed; the demo cannot."""

    def stopped(stages: demo.Stages) -> None:
        raise Stopped("stopped after step 3, saved; go on with --resume auto")

    monkeypatch.setattr(demo.Stages, "float", stopped)
    said = bsq("demo", "--output", tmp_path / "demo", code=75).stderr
    assert "anew" in said and "--resume" not in said


@pytest.mark.slow
def test_the_whole_demo(bsq: Bsq, tmp_path: Path) -> None:
    start = time.perf_counter()
    bsq("demo", "--output", tmp_path / "demo")
    assert time.perf_counter() - start < 180
    result = json.loads((tmp_path / "demo/result.json").read_text())
    last = result["rows"][-1]
    assert result["useful"] and last["compression"] >= 6 and last["top1"] >= result["top1_float"] - 1.5
