"""`us3l ssl` on the digits: what a run writes and says, parts of a run, half precision, the authors' lines."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import Result

import lowbit.models.create
from lowbit.metrics import read_metrics
from lowbit.train.protocol import Clock
from us3l.cli import cli
from us3l.commands import pretrain
from us3l.config import read_config

Us3l = Callable[..., Result]
Line = tuple[object, ...]
Same = Callable[[Path, Path], None]


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_says_and_writes_what_it_found(digits_run: tuple[Path, Result]) -> None:
    folder, said = digits_run
    names = {path.name for path in folder.iterdir()} - {".lock"}
    checkpoints = {"checkpoint.pth.tar", "checkpoint.prev.pth.tar"}  # copies by epoch are of ImageNet alone
    assert names == checkpoints | {"config.json", "metrics.jsonl", "result.json", "train.log", "backbone.safetensors"}
    number = r"-?\d\.\d{3}\(-?\d\.\d{3}\)"
    lines = said.stdout.splitlines()
    logged = rf"Epoch: \[\d\]\[\d/4\]\tLoss: {number}\tInfoNCEv2_distill: {number}"
    assert sum(bool(re.fullmatch(logged, line)) for line in lines) == 16
    assert [line.endswith(" at w0.25") for line in lines if line.startswith(" * k-NN Acc@1 ")] == [False, True] * 2
    result = result_of(folder)
    assert {"knn_top1", "knn_top1_w0.25", "z_std", "z_std_w0.25", "effective_rank_w0.25"} <= result.keys()
    assert result["steps"] == 16 and result["finished"] and result["collapsed"] is False
    steps = [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "step"]
    assert ["loss_min" in line for line in steps] == [False] * 4 + [True] * 12  # of stage 1 is the full width alone
    assert all(line["loss"] == line["loss_max"] for line in steps[:4])
    assert {"loss_max", "loss_middle", "loss_min", "z_std", "z_std_min"} <= steps[-1].keys()


def test_checkpoint_and_backbone(digits_run: tuple[Path, Result]) -> None:
    """The header has config and widths; the backbone is the full width with statistics re-estimated, as timm's net."""
    folder, _ = digits_run
    saved = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert (saved["package"], saved["arch"], saved["epoch"]) == ("us3l", "cifar_resnet8_1x1", 4)
    assert saved["config"]["SSL"]["TYPE"] == "SimCLR_Momentum" and saved["input_size"] == [3, 8, 8]
    assert list(saved["widths"]) == [0.25, 1.0]
    first = {key.partition(".")[0] for key in saved["state_dict"]}
    assert first == {"encoder_q", "encoder_k", "predictor"}
    assert lowbit.models.create  # registers the net
    net = timm.create_model("cifar_resnet8_1x1", num_classes=0, checkpoint_path=str(folder / "backbone.safetensors"))
    state = saved["state_dict"]
    assert torch.equal(net.conv1.weight, state["encoder_q.conv1.weight"])
    assert not state["encoder_q.bn1.running_mean"].any() and net.bn1.running_mean.all()


def test_parts_equal_an_unbroken_run(
    us3l: Us3l, digits_line: Line, same_run: Same, tmp_path: Path, digits_run: tuple[Path, Result]
) -> None:
    """Stopped in the second stage, and at the end of the third."""
    line = (*digits_line, "--output", tmp_path)
    said = us3l(*line, "--max-steps", 6).stdout
    said += us3l(*line, "--max-steps", 12, "--resume", "auto").stdout
    said += us3l(*line, f"MODEL.CHECKPOINT={tmp_path / 'checkpoint.pth.tar'}").stdout
    same_run(tmp_path, digits_run[0])
    assert said == digits_run[1].stdout
    again = us3l(*line, "--resume", "auto", "MODEL.OFA.WIDTH_MULT_RANGE=[0.5, 1.0]", code=2)
    assert "WIDTH_MULT_RANGE" in again.stderr and again.stderr.count("\n") == 1


def test_what_runs_otherwise_than_it_says_is_reported(us3l: Us3l, small: Path, tmp_path: Path) -> None:
    line = ("ssl", "--config", small, "--limit-train", 8, "--probe-every", 0, "--output", tmp_path / "out")
    keys = ("SSL.TYPE=US_SimSiam", "TRAIN.LOSS.CRITERION.NAME=", "TRAIN.USE_AMP=True", "TRAIN.USE_DDP=True")
    said = us3l(
        *line, *keys, "TRAIN.EPOCHS=2", "MODEL.OFA.DISTILL_CRITERION=MSELoss", "--max-steps", 1
    ).stderr.splitlines()
    assert sum("US_SimSiam" in one and "SimSiam is run" in one for one in said) == 1
    assert sum("TRAIN.USE_AMP: the CPU computes in float32" in one for one in said) == 1
    assert sum("TRAIN.EPOCHS=2 trains no width below 0.5: give 4 or more for 0.25" in one for one in said) == 1
    (found,) = [
        one.partition("no effect in this command, set by ")[2] for one in said if "no effect in this command" in one
    ]
    by_file, by_line = found.split("; by ")
    assert by_file.startswith(f"config {small}: ") and "SSL.SETTING.MOCO_K" in by_file
    assert by_line == "the command line: TRAIN.USE_DDP"


@pytest.mark.parametrize(("method", "acts"), [("BYOL", True), ("MoCo", False), ("MoCo_v3", False)])
def test_a_method_of_one_loss_distils_by_it_and_says_so(
    method: str, acts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    keys = (f"SSL.TYPE={method}", "TRAIN.LOSS.CRITERION.NAME=", "MODEL.OFA.DISTILL_CRITERION=MSELoss")
    with caplog.at_level("WARNING"):
        read_config("ssl", "configs/base/digits.yaml", keys)
    assert any("the command line: MODEL.OFA.DISTILL_CRITERION" in one for one in caplog.messages) != acts


def test_a_dry_run_says_the_plan_and_writes_nothing(us3l: Us3l, small: Path, tmp_path: Path) -> None:
    said = us3l("ssl", "--config", small, "--limit-train", 30, "--output", tmp_path / "out", "--dry-run").stdout
    plan = dict(line.split(": ", 1) for line in said.splitlines())
    assert plan["method"] == "SimCLR_Momentum" and plan["net"] == "cifar_resnet8_1x1"
    assert (plan["steps per epoch"], plan["steps"], plan["global_batch"]) == ("4", "16", "8")
    assert not list(tmp_path.iterdir())


@pytest.mark.data
def test_the_authors_line_from_another_folder(
    us3l: Us3l, cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [
        "ssl",
        "--config",
        "./configs/cifar/us_resnet18_simclr_featdistill_cifar.yaml",
        "--output",
        "OUT",
        "-j",
        "8",
    ]
    keys = ("TRAIN.DATASET=cifar10", "TRAIN.BATCH_SIZE=2")
    said = us3l(*line, *keys, "--data", cifar10_root, "--dry-run", "--limit-train", 4, "--limit-eval", 4)
    plan = dict(line.split(": ", 1) for line in said.stdout.splitlines())
    assert (plan["net"], plan["steps"]) == ("cifar_resnet18", "800")
    assert "TRAIN.GLOBAL_BATCH=512" in said.stderr
    assert not list(tmp_path.iterdir())


def test_which_metric_the_authors_log_shows() -> None:
    def shown(*keys: str) -> str:
        return pretrain.widest_loss(read_config("ssl", "configs/base/digits.yaml", keys))

    assert shown() == "loss_max" and shown("MODEL.OFA.NUM_SAMPLE_TRAINING=1") == "loss"
    listed = ("MODEL.OFA.USE_SLIMMABLE=True", "MODEL.OFA.WIDTH_MULT_LIST=[0.5, 1.0]")
    assert shown(*listed) == "loss_1"


def test_copies_are_those_of_the_authors() -> None:
    def kept(dataset: str) -> list[int]:
        due = pretrain.copies_of(dataset).due
        return [epoch for epoch in range(110) if due(Clock(0, epoch, 110, 0, 1, 0))]

    assert kept("imagenet") == [49, 99] and kept("cifar100") == []


def test_a_terminal_shows_the_record_above_a_bar(
    digits_run: tuple[Path, Result], digits_line: Line, terminal: Callable[..., Any], tmp_path: Path
) -> None:
    """Its first epoch."""
    line = [*map(str, digits_line), "--max-steps", "4", "--output", str(tmp_path)]
    terminal(80, lambda: cli(line)).check(digits_run[1].stdout.splitlines()[:4])
