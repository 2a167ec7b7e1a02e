"""`us3l sweep`: what a row says, whose statistics, what is written, two processes, what is refused."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.cost import cost
from lowbit.data.views import view_recipes
from lowbit.evaluate.features import extract
from lowbit.evaluate.knn import knn
from lowbit.options import RunOptions
from lowbit.slim.conversion import sub_network
from lowbit.slim.statistics import WidthStatistics
from lowbit.train.session import Session
from us3l.config import Ofa
from us3l.evaluation import fixed_pictures, open_pretrained

Us3l = Callable[..., Result]
LIMITS = ("--limit-train", 100, "--limit-eval", 50)
QUICK = (*LIMITS, "--widths", "0.25,0.26,0.5,1", "--probe-epochs", 5, "--probe-lr", 3, "--probe-per-width")


@pytest.fixture(scope="module")
def checkpoint(digits_run: tuple[Path, Result]) -> Path:
    return digits_run[0] / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def swept(us3l: Us3l, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep, and what it said."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return folder, us3l("sweep", checkpoint, *QUICK, "--output", folder).stdout


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_one_table_in_four_forms(swept: tuple[Path, str]) -> None:
    folder, said = swept
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"config.json", "result.json", "sweep.csv", "sweep.png", "train.log"}
    result = result_of(folder)
    rows = result["rows"]
    assert [row["variant"] for row in rows] == ["0.25", "0.26", "0.5", "1"]
    figures = {"probe_top1_bn", "probe_top1_retrained_bn", "knn_top1_bn"}
    assert all(figures <= row.keys() and row["top1"] == row["probe_top1_retrained_bn"] for row in rows)
    assert not any("knn_top1" in row for row in rows)  # there are no statistics but re-estimated ones
    assert {**rows[0], "variant": "0.26"} == rows[1]  # one sub-network
    assert rows[0]["macs"] < rows[2]["macs"] < rows[3]["macs"] and rows[3]["probe_top1_bn"] == rows[3]["top1"]
    assert (result["arch"], result["dataset"], result["calibration"]) == ("cifar_resnet8_1x1", "digits", 32)
    with (folder / "sweep.csv").open(newline="") as file:
        assert [int(row["macs"]) for row in csv.DictReader(file)] == [row["macs"] for row in rows]  # exact in all
    assert said.splitlines()[2].startswith(f"| 0.25 | {rows[0]['macs'] / 1e6:.4g} | ")


def test_a_row_is_of_the_ordinary_sub_network_with_its_statistics(swept: tuple[Path, str], checkpoint: Path) -> None:
    row = result_of(swept[0])["rows"][2]
    net = open_pretrained(checkpoint).model
    with Session("us3l", RunOptions(workers=0, limit_train=100, limit_eval=50), "digits") as session:
        train, test = session.pictures("train"), session.pictures("test")
        views, shown = view_recipes("digits", train, 8)
        fixed = fixed_pictures(Ofa(CALIBRATION_PICTURES=32), train, session, net)
        with WidthStatistics(net, lambda: fixed.trained(views), session.accelerator).at(0.5):
            plain = sub_network(net, 0.5)
        bank, queries = (
            extract(plain, session.eval_loader(pictures, shown), session.accelerator) for pictures in (train, test)
        )
        found = knn(bank, queries, session.accelerator, k=row["knn_k"], temperature=row["knn_temperature"])
        assert found["knn_top1"] == row["knn_top1_bn"] and row["macs"] == cost(plain, (3, 8, 8)).macs


def test_two_processes_find_what_one_finds(checkpoint: Path, swept: tuple[Path, str], processes: Any) -> None:
    started = processes.start(("sweep", checkpoint, *QUICK), world=2).wait(0, 0)
    assert started.said(0) == swept[1] and started.said(1) == ""


def test_which_widths(us3l: Us3l, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default quarters; all sub-networks that differ; the largest that is small enough. Nothing is written."""
    monkeypatch.chdir(tmp_path)

    def variants(*more: object) -> list[str]:
        said = us3l("sweep", checkpoint, *LIMITS, *more, "--dry-run").stdout
        return dict(text.split(": ", 1) for text in said.splitlines())["variants"].split(", ")

    assert variants() == ["0.25", "0.5", "0.75", "1"]
    assert variants("--widths", "0.25:1.0:0.25") == variants()
    every = variants("--distinct")
    assert every[0] == "0.25" and every[-1] == "1" and len(every) == len(set(every)) > 5
    (best,) = variants("--best-under", 0.3)
    assert best in every and 0.25 < float(best) < 0.75
    assert not list(tmp_path.iterdir())


def test_a_switchable_net_has_statistics_of_its_own(us3l: Us3l, listed_run: Path, tmp_path: Path) -> None:
    us3l("sweep", listed_run, *LIMITS, "--probe-epochs", 2, "--probe-lr", 1, "--output", tmp_path / "sweep")
    rows = result_of(tmp_path / "sweep")["rows"]
    assert [row["variant"] for row in rows] == ["0.5", "1"] and {"knn_top1", "knn_top1_bn"} <= rows[0].keys()
    assert "was not trained, only 0.5, 1" in us3l("sweep", listed_run, *LIMITS, "--widths", "0.75", code=2).stderr


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--widths", "0.2"), "--widths 0.2 was not trained, only 0.25 to 1"),
        (("--widths", "0"), "is not in (0, 1]"),
        (("--best-under", "0.001"), "no sub-network has"),
        (("--best-under", "9", "--distinct"), "give one of them"),
        (("--widths", "1", "--distinct"), "give one of them"),
        (("--dataset", "mnist"), "--dataset mnist"),
        (("--arch", "resnet18"), "it holds a cifar_resnet8_1x1"),
        (("--pretrained",), "--pretrained"),
        (("--calibration", "1"), "CALIBRATION_PICTURES=1"),
    ],
)
def test_what_is_refused(us3l: Us3l, checkpoint: Path, tmp_path: Path, more: tuple[object, ...], said: str) -> None:
    error = us3l("sweep", checkpoint, *LIMITS, *more, "--output", tmp_path / "out", code=2).stderr
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_file_of_weights_needs_a_dataset(us3l: Us3l, checkpoint: Path) -> None:
    """Its pictures have the size that it states, and MACs are counted for them."""
    backbone = checkpoint.with_name("backbone.safetensors")
    assert (open_pretrained(backbone).size, open_pretrained(backbone).states_size) == ((3, 8, 8), True)
    assert "--dataset" in us3l("sweep", backbone, code=2).stderr
    line = ("sweep", backbone, *LIMITS, "--dataset", "digits", "--dry-run")
    assert "variants: 0.25, 0.5, 0.75, 1" in us3l(*line).stdout
    assert torch.is_tensor(open_pretrained(backbone).model.get_parameter("conv1.weight"))
