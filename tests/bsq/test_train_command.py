"""`bsq train`: files, resume, a stop, evaluation, plans; on the digits."""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import Result
from PIL import Image

import lowbit
from bsq.cli import cli
from lowbit.data.recipe import DIGITS
from lowbit.metrics import read_metrics
from lowbit.train import signals

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--train-batch", "64")


def test_files_of_a_run(digits_run: Path) -> None:
    folder = digits_run / "float"
    expected = {"checkpoint.pth.tar", "checkpoint.prev.pth.tar", "model_best.pth.tar", "log.txt", "config.json"}
    expected |= {"metrics.jsonl", "train.log", "result.json", "backbone.safetensors"}
    assert expected <= {path.name for path in folder.iterdir()}
    config, result = (json.loads((folder / f"{name}.json").read_text()) for name in ("config", "result"))
    assert config["command"] == "train" and config["sgd"]["schedule"] == [2] and config["environment"]["torch"]
    for values in (config, result):
        assert (values["global_batch"], values["batch_per_process"], values["seed"]) == (64, 64, 1234)
    assert 60 < result["top1"] <= 100 and result["images_per_second"] > 0 and result["steps"] == 3 * 23


def test_image_size(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Files say it, and the commands that read them keep it; a resumed run has that of its start."""
    few = ("--limit-train", 40, "--limit-eval", 20)
    line = ("train", *NET, *few, "--epochs", 2, "--max-steps", 1, "-c", tmp_path / "a")
    bsq(*line, "--image-size", 12)
    bsq("convert", *NET, *few, "--model", tmp_path / "a/checkpoint.pth.tar", "-c", tmp_path / "b")
    for folder in "ab":
        cfg = lowbit.load(tmp_path / folder / "checkpoint.pth.tar").pretrained_cfg
        assert (cfg["input_size"], cfg["mean"][0], cfg["crop_pct"]) == ((3, 12, 12), DIGITS.mean[0], 1.0)
    assert "--image-size" in bsq(*line, "--resume", "auto", code=2).stderr
    bsq(*line, "--image-size", 8, "--overwrite")  # their own: they are shown as without it
    assert torch.load(tmp_path / "a/checkpoint.pth.tar", weights_only=True)["pictures"] is None
    said = bsq("train", "-d", "digits", "-a", "test_vit", "--image-size", 12, "-c", tmp_path / "c", code=2).stderr
    assert "test_vit cannot take pictures of 12x12 pixels" in said and "change --image-size" in said
    assert not (tmp_path / "c").exists()


def test_log_txt_has_the_authors_columns(digits_run: Path) -> None:
    lines = (digits_run / "float/log.txt").read_text().splitlines()
    assert lines[0].split("\t") == ["Learning Rate", "Train Loss", "Valid Loss", "Train Acc.", "Valid Acc.", ""]
    rows = [[float(value) for value in line.split("\t")[:-1]] for line in lines[1:]]
    assert [row[0] for row in rows] == pytest.approx([0.1, 0.1, 0.01])
    metrics = read_metrics(digits_run / "float/metrics.jsonl")
    assert [row[4] for row in rows] == pytest.approx([m["top1"] for m in metrics if m["event"] == "eval"], abs=1e-6)


def test_checkpoint_says_what_it_is_and_has_the_authors_keys(digits_run: Path) -> None:
    state = torch.load(digits_run / "float/checkpoint.pth.tar", weights_only=True)
    assert (state["package"], state["arch"], state["classes"]) == ("bsq", "cifar_resnet8_1x1", 10)
    assert "module.layer1.0.conv1.weight" in state["state_dict"]
    assert all(key.startswith("module.") for key in state["state_dict"])


def test_timm_loads_the_backbone(digits_run: Path) -> None:
    path = digits_run / "float/backbone.safetensors"
    net = timm.create_model("cifar_resnet8_1x1", num_classes=0, checkpoint_path=str(path))
    state = torch.load(digits_run / "float/checkpoint.pth.tar", weights_only=True)["state_dict"]
    assert torch.equal(net.state_dict()["conv1.weight"], state["module.conv1.weight"])


def test_evaluate_agrees_with_training_and_writes_nothing(
    digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = digits_run / "float/checkpoint.pth.tar"
    said = bsq("train", *NET, "--model", model, "--evaluate").stdout
    top1 = json.loads((digits_run / "float/result.json").read_text())["top1"]
    assert f"Accuracy: {top1:.2f}%" in said and "Total params: 0.08M" in said
    assert not list(tmp_path.iterdir())


def test_a_run_in_two_parts_is_the_unbroken_run(
    bsq: Bsq, same_run: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    line = ("train", *NET, "--epochs", 2, "--schedule", 1, "--limit-train", 320, "--limit-eval", 50, "--seed", 5)
    bsq(*line, "-c", tmp_path / "whole")
    bsq(*line, "-c", tmp_path / "parts", "--max-steps", 7, "--save-every", 3)
    bsq(*line, "-c", tmp_path / "parts", "--resume", "auto", "--save-every", 3)
    whole, parts = (tmp_path / name for name in ("whole", "parts"))
    same_run(whole, parts)


def test_a_stop_saves_and_the_run_goes_on(bsq: Bsq, tmp_path: Path) -> None:
    line = ("train", *NET, "--epochs", 1, "--limit-train", 128, "--limit-eval", 20, "-c", tmp_path / "run")
    signals.request_stop()
    try:
        stopped = bsq(*line, code=75)
    finally:
        signals.clear()
    assert stopped.stderr.strip().splitlines()[-1].startswith("stopped")
    assert (tmp_path / "run/checkpoint.pth.tar").exists()
    bsq(*line, "--resume", "auto")
    assert json.loads((tmp_path / "run/result.json").read_text())["steps"] == 2


def test_val_split_chooses_the_best(bsq: Bsq, tmp_path: Path) -> None:
    bsq("train", *NET, "--epochs", 1, "--limit-train", 200, "--val-split", 0.2, "-c", tmp_path / "run")
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert result["pictures"] == 160 and "val_top1" in result["best"] and "top1" in result
    assert len(json.loads((tmp_path / "run/config.json").read_text())["chosen"]["val"]) == 40


def test_a_start_without_a_last_layer(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """A backbone is read where the last layer is trained, and refused where it is not."""
    start = digits_run / "float/backbone.safetensors"
    limits = ("--limit-train", 70, "--limit-eval", 20, "--max-steps", 1)
    for command in (("train",), ("cifar_prune_STE", "--Nbits", 3)):
        out = tmp_path / command[0]
        result = bsq(*command, *NET, *limits, "--model", start, "-c", out)
        assert "backbone.safetensors: the last layer (fc.bias) is drawn" in result.stderr
        assert (out / "checkpoint.pth.tar").exists()
    for line in (("train", "--evaluate"), ("convert",), ("cifar_prune_STE", "--Nbits", 3, "--evaluate")):
        refused = bsq(*line, *NET[:4], "--model", start, code=2).stderr
        assert refused.startswith("error: ") and refused.count("\n") == 1 and "without the last layer" in refused


def test_dry_run_prints_the_plan_and_writes_nothing(bsq: Bsq, tmp_path: Path) -> None:
    plan = bsq("train", *NET, "--epochs", 10, "-c", tmp_path / "run", "--dry-run").stdout
    assert "steps: 230\n" in plan and "parameters: 78,042\n" in plan and "estimated seconds: " in plan
    assert not list(tmp_path.iterdir())


OTHER = ("--opt", "adamw", "--sched", "cosine", "--warmup-epochs", 1, "--lr", 0.01)


def test_another_optimizer_and_schedule(bsq: Bsq, tmp_path: Path) -> None:
    """They are recorded, and a resumed run has to have the same."""
    line = ("train", *NET, "--epochs", 2, "--limit-train", 128, "--limit-eval", 20, "-c", tmp_path / "run")
    bsq(*line, *OTHER, "--max-steps", 3)
    rates = [m["lr"] for m in read_metrics(tmp_path / "run/metrics.jsonl") if m["event"] == "epoch"]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi / 2)) / 2])  # after the warm-up, half-way
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert [config["sgd"][name] for name in ("opt", "sched", "warmup_epochs")] == ["adamw", "cosine", 1]
    state = torch.load(tmp_path / "run/checkpoint.pth.tar", weights_only=True)
    assert "exp_avg_sq" in state["optimizer"]["main"]["state"][0]
    said = bsq(*line, *OTHER[2:], "--resume", "auto", code=2).stderr
    assert said.startswith("error: --resume auto: the checkpoint was made with --opt adamw, this run has sgd")
    bsq(*line, *OTHER, "--resume", "auto")


def test_sigterm_to_the_program(processes: Any, tmp_path: Path) -> None:
    """As a process: the handlers that `main` installs, and 75 as its own exit code."""
    started = processes.start(("train", *NET, "--epochs", 100000, "-c", tmp_path / "run"))
    deadline = time.monotonic() + 60
    while "epoch 1/100000" not in started.said(stream="err"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(started.pids[0], signal.SIGTERM)
    started.wait(75)
    assert (tmp_path / "run/checkpoint.pth.tar").exists()


def test_a_terminal_shows_the_record_above_a_bar(
    bsq: Bsq, terminal: Callable[..., Any], curves_drawn: None, tmp_path: Path
) -> None:
    """The same run twice: the list of parameters is for a file. It ends with its curves."""
    line = ("train", *NET, "--epochs", "2", "--limit-train", "100", "--limit-eval", "60", "-c")
    record = bsq(*line, tmp_path / "a").stdout.splitlines()
    screen = terminal(80, lambda: cli([*line, str(tmp_path / "b")]))
    screen.check([said for said in record if not said.startswith("module.")])
    with Image.open(tmp_path / "b/curves.png") as picture:
        assert min(picture.size) > 300
