"""Running means and the metrics file."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lowbit.errors import InputError
from lowbit.train.log import Meter, MetricsFile, read_metrics

ONE: Any = SimpleNamespace(num_processes=1)


def test_means_are_weighted_by_share() -> None:
    meter = Meter()
    for value, weight in ((1.0, 1.0), (4.0, 0.5)):
        meter.add("loss", torch.tensor(value, requires_grad=True) * 1, weight)
    assert meter.read(ONE) == {"loss": 2.0}
    assert meter.read(ONE) == {}
    meter.add("loss", torch.tensor(7.0), 1.5)
    assert meter.read(ONE) == {"loss": 7.0}
    assert meter.read_epoch() == {"loss": pytest.approx((1 + 2 + 10.5) / 3)}
    assert meter.read_epoch() == {}


def test_saving_in_between_changes_no_mean() -> None:
    values = torch.rand(20)
    unbroken, broken = Meter(), Meter()
    for number, value in enumerate(values):
        unbroken.add("loss", value, 1.0)
        broken.add("loss", value, 1.0)
        if number == 7:
            assert broken.read(ONE) == unbroken.read(ONE)
        if number in (3, 12):
            state, broken = broken.state(), Meter()
            broken.load(state)
    assert unbroken.read(ONE) == broken.read(ONE)
    assert unbroken.read_epoch() == broken.read_epoch()


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


@pytest.mark.parametrize("damage", [b"\xff\xfe{", b"3", b"[1]", b"{", b"[" * 100_000])
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
