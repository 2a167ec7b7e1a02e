"""Curves of runs: what is drawn out of the lines of metrics, and the pictures."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lowbit.curves import accuracy, bits_by_layer, by_width, losses, plot_run, plot_runs, rates
from lowbit.errors import InputError

BITS = [{"conv1": [8, 0], "a$b_c": [8, 0]}, {"conv1": [3, 0], "fc": [2, 1]}]
LINES: list[dict[str, Any]] = [
    {"event": "requantize", "step": 0, "bits": BITS[0], "top1_before": 9.0},
    {"event": "step", "step": 2, "loss": 2.0, "lr": 0.1},
    {"event": "step", "step": 4, "loss": 1.0, "lr": 0.1},
    {"event": "epoch", "step": 5, "loss": 1.5, "lr": 0.1},
    {"event": "eval", "step": 5, "loss": 1.9, "top1": 40.0, "top1_0.5": 30.0, "top1_1.0": 40.0},
    {"event": "epoch", "step": 10, "loss": None, "lr": 0.01},
    {"event": "eval", "step": 10, "loss": 1.7, "top1": 50.0, "top1_0.5": 35.0, "top1_1.0": 50.0, "z_std": 1.0},
    {"event": "requantize", "step": 10, "bits": BITS[1]},
]


def test_curves_by_hand() -> None:
    assert [tuple(curve) for curve in losses(LINES)] == [
        ("training", [(2, 2.0), (4, 1.0)]),
        ("test", [(5, 1.9), (10, 1.7)]),
    ]
    parts = [{**line, "ce": line["loss"]} if line["event"] == "step" else line for line in LINES]
    assert [curve.name for curve in losses(parts)] == ["training", "training, cross-entropy", "test"]
    assert next(tuple(curve) for curve in losses(LINES[3:])) == ("training", [(5, 1.5)])  # of epochs
    assert {curve.name: curve.points for curve in accuracy(LINES)} == {
        "top-1": [(5, 40.0), (10, 50.0)],
        "top-1 0.5": [(5, 30.0), (10, 35.0)],
        "top-1 1.0": [(5, 40.0), (10, 50.0)],
    }
    assert [tuple(curve) for curve in rates(LINES)] == [("", [(2, 0.1), (4, 0.1)])]
    several = [{"event": "epoch", "step": step, "lr": {"main": 0.1, "scales": step}} for step in (1, 2)]
    assert {curve.name: curve.points for curve in rates(several)} == {
        "main": [(1, 0.1), (2, 0.1)],
        "scales": [(1, 1), (2, 2)],
    }
    assert [tuple(curve) for curve in by_width(LINES)] == [("", [(0.5, 35.0), (1.0, 50.0)])]
    assert list(by_width([{"event": "eval", "step": 1, "top1": 3.0, "top1_w0.25": 2.0}])) == []


def test_bits_over_requantisations() -> None:
    bits = bits_by_layer(LINES)
    assert list(bits) == ["conv1", "a$b_c", "fc"] and bits["conv1"] == [8, 3]
    assert bits["a$b_c"][0] == 8 and math.isnan(bits["a$b_c"][1]) and math.isnan(bits["fc"][0]) and bits["fc"][1] == 2
    assert bits_by_layer(LINES[1:-1]) == {}


def run_folder(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    """Four shared panels, and a map of bits for the one run that has it."""
    other = [line for line in LINES if line["event"] != "requantize"]
    runs = [run_folder(tmp_path / "_a$b", LINES), run_folder(tmp_path / "b", other)]
    plot_runs(runs, tmp_path / "two.png")
    with Image.open(tmp_path / "two.png") as picture:
        assert picture.size == (round(3 * 4.4 * 120), round(2 * 3.4 * 120))


def test_paths_may_be_text(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", LINES[1:3])
    plot_runs(str(run), str(tmp_path / "one.png"))
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (round(2 * 4.4 * 120), round(3.4 * 120))


@pytest.mark.parametrize(
    "lines",
    [[], [{"event": "eval", "step": "x", "loss": 1.0}], [{"event": 3, "bits": 4}, {"event": "requantize", "bits": {}}]],
)
def test_a_run_without_a_figure_is_refused(tmp_path: Path, lines: list[dict[str, Any]]) -> None:
    run = run_folder(tmp_path / "run", lines)
    plot_run(run)
    with pytest.raises(InputError, match=r"no figure.* name"):
        plot_runs([run], tmp_path / "none.png")
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"] and not (tmp_path / "none.png").exists()


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run/metrics.jsonl").mkdir(parents=True)
    for folder in (tmp_path / "none", tmp_path / "run"):
        with pytest.raises(InputError, match=r"metrics.jsonl"):
            plot_runs([folder], tmp_path / "none.png")
        plot_run(folder)  # at the end of a run it is a warning
