"""The metrics file: written, cut back, read up to what is damaged; figures of its lines and their names."""

import math
from pathlib import Path

import pytest

from lowbit.errors import InputError
from lowbit.metrics import MetricsFile, accuracies, number, read_metrics, words


def test_metrics_are_cut_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(5):
        first.write({"step": step})
    path.write_text(path.read_text() + '{"step": 5, "lo')  # torn by a kill
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3, 4]
    again = MetricsFile(path)
    again.cut(3)
    again.write({"step": 3, "again": True})
    assert [line["step"] for line in read_metrics(path)] == [0, 1, 2, 3]
    assert again.lines == 4


def test_no_file_is_no_error(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "none") == []
    MetricsFile(None).write({"step": 0})


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        MetricsFile(tmp_path / "missing" / "metrics.jsonl").write({"step": 0})


@pytest.mark.parametrize("damage", [b"\xff\xfe{", b"3", b"[1]", b"{", b"[" * 100_000, b'{"step": 1' + b"0" * 5000])
def test_damaged_metrics_are_read_up_to_the_damage_and_cut(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"event": "step", "step": 1}\n' + damage + b'\n{"event": "step", "step": 2}\n')
    assert [line["step"] for line in read_metrics(path)] == [1]
    file = MetricsFile(path)
    file.cut(1)
    file.write({"event": "step", "step": 3})
    assert [line["step"] for line in read_metrics(path)] == [1, 3] and file.lines == 2


def test_a_folder_in_place_of_the_metrics_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        MetricsFile(tmp_path / "metrics.jsonl").cut(0)


def test_figures_of_a_line() -> None:
    line = {"top1": 38.3, "knn_top1_w0.25": 20, "top5": 80.0, "val_top1": None, "top1_bn": math.nan, "lr": {"top1": 1}}
    assert accuracies(line) == {"top1": 38.3, "knn_top1_w0.25": 20.0}
    assert [number(value) for value in (True, "1", 10**400, -math.inf, -2)] == [None, None, None, None, -2.0]
    assert [words(key) for key in ("knn_top1_w0.25", "val_top1", "top1_bn", "compression")] == [
        "k-NN top-1 w0.25", "held-out top-1", "top-1 with batch norm re-estimated", "compression",
    ]  # fmt: skip
