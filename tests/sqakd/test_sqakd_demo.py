"""The demo, cut short: both trainings of one quantizer, its table and picture, its verdict."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import Result

from sqakd.commands import demo


@pytest.mark.parametrize("needed", [0.0, 101.0])
def test_a_short_demo(
    sqakd: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, needed: float
) -> None:
    for name in ("FLOAT", "LOW"):
        monkeypatch.setattr(demo, name, replace(getattr(demo, name), epochs=1, calibration=64))
    monkeypatch.setattr(demo, "QUANTIZERS", ("lsq",))
    monkeypatch.setattr(demo, "NEEDED", needed)
    said = sqakd("demo", "--limit-train", 120, "--limit-eval", 60, "--output", tmp_path, code=int(needed > 100)).stdout
    result = json.loads((tmp_path / "result.json").read_text())
    assert {path.name for path in tmp_path.iterdir()} >= {"teacher", "lsq-qat", "lsq-sqakd", "table.md", "demo.png"}
    table = (tmp_path / "table.md").read_text()
    assert table in said and table.count("\n") == 4 and f"{result['rows'][0]['sqakd']:.2f}" in table
    assert result["useful"] is (needed < 100) and result["rows"][0]["bytes"] < 40_000
    labels = {name: (tmp_path / f"lsq-{name}/metrics.jsonl").read_text().count('"ce"') for name in ("qat", "sqakd")}
    assert labels["qat"] > 0 and labels["sqakd"] == 0
