"""`bsq demo`: its table, its verdict, its folder; the whole of it is marked slow."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from bsq import demo

Bsq = Callable[..., Result]


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs and one conversion."""
    monkeypatch.setattr(demo, "SGD", dataclasses.replace(demo.SGD, epochs=2, schedule=(1,)))
    monkeypatch.setattr(demo, "BITS", (3,))


@pytest.mark.usefixtures("short")
def test_files_table_and_verdict(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bar is set beyond reach, so that the exit code is seen to depend on it; the slow test meets the real one."""
    monkeypatch.setattr(demo, "NEEDED", 80.0)
    out = tmp_path / "demo"
    said = bsq("demo", "--output", out, code=1).stdout
    table = (out / "table.md").read_text()
    assert said.startswith(table.strip()) and table.count("\n") == 4 and "| 3 bits | 4 bits |" in table
    assert "shows nothing" in said
    result = json.loads((out / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["float", "3 bits"]
    assert not result["useful"] and result["probe_top1"] - result["probe_top1_random"] > 10
    assert result["rows"][1]["compression"] == pytest.approx(32 / 3)
    assert {"float", "bits3", "packed3", "demo.png"} <= {path.name for path in out.iterdir()}
    assert "Accuracy" in (out / "bits3/record.txt").read_text()
    assert demo._is_demo(out)  # so that the next demo replaces it
    (out / "config.json").write_text('{"command": "train"}')
    assert "--overwrite" in bsq("demo", "--output", out, code=2).stderr  # another run is not replaced


def test_one_process_only(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "WORLD_SIZE=2" in bsq("demo", "--output", tmp_path / "demo", code=2).stderr


@pytest.mark.slow
def test_the_whole_demo(bsq: Bsq, tmp_path: Path) -> None:
    start = time.perf_counter()
    bsq("demo", "--output", tmp_path / "demo")
    assert time.perf_counter() - start < 90
    result = json.loads((tmp_path / "demo/result.json").read_text())
    assert result["useful"] and all(row["top1"] > 95 for row in result["rows"])
