"""`ssql sweep`: what a row says, whose net it is, what is written, two processes, what is refused."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.data.loader import EvalLoader
from lowbit.data.recipe import DIGITS, plain
from lowbit.errors import InputError
from lowbit.evaluate.features import extract, pooled
from lowbit.options import RunOptions
from lowbit.quant.bitwidths import in_mode, quantize_uniform_, set_bits_
from lowbit.quant.calibrate import calibrate_
from lowbit.train.session import Session
from ssql.bit_policy import derive_policy
from ssql.bitwidths import DEFAULT, FLOAT, Bits, parse_bits
from ssql.config import Quant
from ssql.evaluation import QuantizedBackbone, open_pretrained

Ssql = Callable[..., Result]
LIMITS = ("--limit-train", 300, "--limit-eval", 90)
QUICK = (*LIMITS, "--bits", "fp,4w4f,2w4f", "--probe-epochs", 20, "--probe-lr", 3)


@pytest.fixture(scope="module")
def checkpoint(digits_run: tuple[Path, Result]) -> Path:
    return digits_run[0] / "checkpoint.pth.tar"


@pytest.fixture(scope="module")
def swept(ssql: Ssql, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a sweep, and what it said."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    return folder, ssql("sweep", checkpoint, *QUICK, "--output", folder).stdout


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_one_table_in_four_forms(swept: tuple[Path, str]) -> None:
    folder, said = swept
    names = {path.name for path in folder.iterdir()} - {".lock"}
    assert names == {"config.json", "result.json", "sweep.csv", "sweep.png", "train.log"}
    result = result_of(folder)
    rows = result["rows"]
    assert [row["variant"] for row in rows] == ["fp", "4w4f", "2w4f"]
    assert all(row["probe"] == "float" and row["top1"] == row["probe_top1"] for row in rows)
    assert {"knn_top1", "knn_top1_bn", "probe_top1_bn"} <= set(rows[0]) and rows[0]["knn_k"] == 200
    assert rows[0]["top1"] > rows[2]["top1"] and rows[0]["top1"] > 30
    assert (result["arch"], result["dataset"], result["calibration"]) == ("cifar_resnet8_1x1", "digits", 300)
    with (folder / "sweep.csv").open(newline="") as file:
        assert [float(row["top1"]) for row in csv.DictReader(file)] == [row["top1"] for row in rows]
    lines = said.splitlines()
    assert len(lines) == 5 and lines[2].startswith(f"| fp | {rows[0]['probe_top1']:.2f} |")


def test_without_output_nothing_is_written_and_probes_are_trained_at_each_width(
    ssql: Ssql, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ("sweep", checkpoint, *LIMITS, "--bits", "fp,2w0f", "--probe-epochs", 2, "--probe-per-bits")
    assert "probe trained at each" in ssql(*line).stdout
    plan = dict(text.split(": ", 1) for text in ssql(*line, "--dry-run", "--output", "out").stdout.splitlines())
    assert plan["variants"] == "fp, 2w0f" and plan["training pictures"] == "300"
    assert not list(tmp_path.iterdir())


def test_a_float_file_is_swept_like_the_checkpoint_it_is_of(
    ssql: Ssql, checkpoint: Path, swept: tuple[Path, str], tmp_path: Path
) -> None:
    backbone = checkpoint.with_name("backbone.safetensors")
    assert "--dataset" in ssql("sweep", backbone, code=2).stderr
    ssql("sweep", backbone, *QUICK, "--dataset", "digits", "--output", tmp_path / "out")
    assert result_of(tmp_path / "out")["rows"] == result_of(swept[0])["rows"]


def test_two_processes_find_what_one_finds(checkpoint: Path, swept: tuple[Path, str], processes: Any) -> None:
    started = processes.start(("sweep", checkpoint, *QUICK), world=2).wait(0, 0)
    assert started.said(0) == swept[1] and started.said(1) == ""


def test_a_signal_leaves_75(checkpoint: Path, tmp_path: Path, processes: Any) -> None:
    line = ("sweep", checkpoint, *LIMITS, "--probe-epochs", 10**6, "--output", tmp_path / "out")
    started = processes.start(line)
    while not (tmp_path / "out/train.log").exists():
        time.sleep(0.01)
    os.kill(started.pids[0], signal.SIGTERM)
    started.wait(75)
    assert "anew with --overwrite" in started.said(0, "err") and not (tmp_path / "out/result.json").exists()


def quantized(session: Session, path: Path, **quant: Any) -> QuantizedBackbone:
    train = session.pictures("train")
    backbone = replace(open_pretrained(path), size=(3, 8, 8))
    return QuantizedBackbone(session, backbone, Quant(**quant), train, plain(DIGITS))


def test_a_variant_is_the_net_at_its_bits(checkpoint: Path) -> None:
    """Against the same by hand, from the float net; 256 pictures are one batch, and all of them set the ranges."""
    with Session("ssql", RunOptions(workers=0, limit_train=256), "digits") as session:
        ours, net = quantized(session, checkpoint), open_pretrained(checkpoint).model
        (batch,) = EvalLoader(session.pictures("train"), plain(DIGITS), batch_size=256)
        x = batch.views[0]
        with torch.no_grad():
            wanted = {FLOAT: pooled(net, x)}
            quantize_uniform_(net, derive_policy(net, (3, 8, 8)))
            calibrate_(net, [x])
            for bits in (Bits("3w5f", 3, 5), Bits("0w4f", 0, 4)):
                with in_mode(set_bits_(net, bits.w, bits.a), "quantized"):
                    wanted[bits] = pooled(net, x)
        shown = session.eval_loader(session.pictures("train"), plain(DIGITS))
        for bits, features in wanted.items():
            with ours.at(bits):
                assert torch.equal(extract(ours.net, shown, session.accelerator).x, features)
        assert not any(torch.equal(a, b) for a, b in combinations(wanted.values(), 2))


def test_pins_at_full_precision_as_the_authors_have_them(checkpoint: Path) -> None:
    with Session("ssql", RunOptions(workers=0), "digits") as session:
        features = {}
        for fp in ("float", "authors"):
            ours = quantized(session, checkpoint, FP=fp)
            with ours.at(FLOAT):
                features[fp] = extract(
                    ours.net, session.eval_loader(session.pictures("train"), plain(DIGITS)), session.accelerator
                ).x
        off = (features["float"] - features["authors"]).abs()
        assert 0 < off.mean() < 0.05 * features["float"].abs().mean()


def test_batch_norm_anew_mends_statistics_that_do_not_fit(
    ssql: Ssql, checkpoint: Path, swept: tuple[Path, str], tmp_path: Path
) -> None:
    saved = torch.load(checkpoint, weights_only=True)
    for key, value in saved["state_dict"].items():
        if key.endswith("running_var"):
            value *= 0.01
    torch.save(saved, tmp_path / "bad.pth.tar")
    ssql("sweep", tmp_path / "bad.pth.tar", *QUICK, "--output", tmp_path / "out")
    bad, good = result_of(tmp_path / "out")["rows"][0], result_of(swept[0])["rows"][0]
    assert bad["probe_top1_bn"] == good["probe_top1_bn"] and bad["knn_top1_bn"] == good["knn_top1_bn"]
    assert bad["knn_top1"] != good["knn_top1"]


def test_a_held_folder_is_begun_anew_or_not_at_all(ssql: Ssql, checkpoint: Path, swept: tuple[Path, str]) -> None:
    said = ssql("sweep", checkpoint, *QUICK, "--output", swept[0], code=2).stderr
    assert "--overwrite" in said and "--resume" not in said


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(1, []), (2, []), (3, [2]), (4, [3]), (20, [12, 16]), (100, [60, 80])]
)
def test_milestones_of_short_probes(
    ssql: Ssql, checkpoint: Path, tmp_path: Path, epochs: int, milestones: list[int]
) -> None:
    """Of the probe that the command trains."""
    limits = ("--limit-train", 30, "--limit-eval", 10, "--bits", "fp")
    ssql("sweep", checkpoint, *limits, "--probe-epochs", epochs, "--output", tmp_path / "out")
    assert result_of(tmp_path / "out")["probe"]["milestones"] == milestones


def test_widths() -> None:
    assert parse_bits("fp,2w4f , 16w0f") == (Bits("fp", 0, 0), Bits("2w4f", 2, 4), Bits("16w0f", 16, 0))
    assert [bits.name for bits in parse_bits(DEFAULT)] == DEFAULT.split(",")
    with pytest.raises(InputError, match="fp is named twice"):
        parse_bits("fp,4w4f,0w0f")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--bits", "fp,1w4f"), "'1w4f'"),
        (("--bits", "4w17f"), "'4w17f'"),
        (("--bits", "w4f"), "'w4f'"),
        (("--bits", ""), "''"),
        (("--bits", "4w4f,4w4f"), "twice"),
        (("--dataset", "cifar10", "--data", "nowhere"), "there is no"),
        (("--dataset", "cifar"), "cifar10, cifar100"),
        (("--arch", "resnet18"), "not a resnet18"),
        (("--limit-eval", "361"), "361"),
        (("--pretrained",), "--pretrained"),
        (("--fp", "full"), "--fp"),
        (("--calibration", "1"), "QUANT.CALIBRATION.PICTURES=1"),
        (("--limit-train", "1"), "of 1 training"),
    ],
)
def test_what_is_wrong_is_one_line(
    ssql: Ssql, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = ssql("sweep", checkpoint, "--output", tmp_path / "out", *args, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(tmp_path.iterdir())
