"""Resumed BSQ trainings: without the best state, with more epochs, under other optimizer options; damaged states."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

Bsq = Callable[..., Result]
LINE = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", 100, "--limit-eval", 30, "--train-batch", 50)
LINE = (*LINE, "--schedule", 9)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.fixture(scope="module")
def model(digits_run: Path) -> tuple[object, ...]:
    return ("--model", digits_run / "bits8/checkpoint.pth.tar")


def test_finetuning_resumed_without_its_best_state(bsq: Bsq, model: tuple[object, ...], tmp_path: Path) -> None:
    """From a checkpoint that was copied alone; all that a run ends with is written."""
    line = ("cifar_finetune", *LINE, *model, "--lr", 0.01, "--epochs", 3)
    bsq(*line, "-c", tmp_path / "a", "--max-steps", 3)
    (tmp_path / "alone").mkdir()
    shutil.copy(tmp_path / "a/checkpoint.pth.tar", tmp_path / "alone")
    said = bsq(*line, "-c", tmp_path / "b", "--resume", tmp_path / "alone/checkpoint.pth.tar").stderr
    assert "the best state so far is lost" in said and "going on from step 3 of 6: 3 remain" in said
    names = {path.name for path in (tmp_path / "b").iterdir()}
    assert {"best_bin.pth.tar", "best_float.pth.tar", "model_best.pth.tar", "result.json"} <= names
    assert result_of(tmp_path / "b")["best"]["epoch"] in (1, 2)
    assert "is lost" not in bsq(*line[:-1], 4, "-c", tmp_path / "b", "--resume", "auto").stderr


def test_more_epochs(bsq: Bsq, model: tuple[object, ...], tmp_path: Path) -> None:
    """Float training is made longer; the end of bit training changed the net."""
    line = ("train", *LINE, "-c", tmp_path / "float", "--epochs")
    bsq(*line, 1)
    assert "nothing to do" in bsq(*line, 1, "--resume", "auto").stderr
    said = bsq(*line, 2, "--resume", "auto").stderr
    assert "resuming with epochs [2] after [1]" in said and "going on from step 2 of 4: 2 remain" in said
    assert result_of(tmp_path / "float")["steps"] == 4
    said = bsq(*line, 1, "--resume", "auto", code=2).stderr
    assert "beyond the 1 epochs of this run: give at least 2" in said and said.count("\n") == 1
    prune = ("cifar_prune_STE", *LINE, *model, "--Nbits", 8, "-c", tmp_path / "bits", "--epochs")
    bsq(*prune, 1)
    before = {path: path.read_bytes() for path in (tmp_path / "bits").iterdir()}
    said = bsq(*prune, 2, "--resume", "auto", code=2).stderr
    assert "started with 1 epochs, and their end changes the net" in said and said.count("\n") == 1
    assert {path: path.read_bytes() for path in (tmp_path / "bits").iterdir()} == before


def test_optimizer_options_of_the_file(bsq: Bsq, model: tuple[object, ...], tmp_path: Path) -> None:
    """Those of planes too; the strength that a target adapts is not one of them."""
    line = ("cifar_prune_STE", *LINE, *model, "--epochs", 2, "--decay", 0.01, "--target-compression", 6)
    bsq(*line, "-c", tmp_path / "a", "--max-steps", 3)
    state = torch.load(tmp_path / "a/checkpoint.pth.tar", weights_only=True)
    for optimizer, values in (("planes", {"weight_decay": 0.3}), ("main", {"nesterov": True})):
        changed = json.loads(json.dumps(state["optimizer"][optimizer]["param_groups"]))
        changed[0].update(values)
        groups = {**state["optimizer"][optimizer], "param_groups": changed}
        bad = {**state, "optimizer": {**state["optimizer"], optimizer: groups}}
        torch.save(bad, tmp_path / "bad.pth.tar")
        said = bsq(*line, "-c", tmp_path / "b", "--resume", tmp_path / "bad.pth.tar", code=2).stderr
        assert f"optimizer {optimizer} has {next(iter(values))}" in said and said.count("\n") == 1
    assert not (tmp_path / "b").exists()
    state["optimizer"]["planes"]["param_groups"][0]["strength"] = 0.02
    torch.save(state, tmp_path / "good.pth.tar")
    bsq(*line, "-c", tmp_path / "b", "--resume", tmp_path / "good.pth.tar")


def test_a_damaged_state_of_an_interrupted_run(bsq: Bsq, model: tuple[object, ...], tmp_path: Path) -> None:
    """It is left out of the choice of the best, and does not end the training."""
    line = ("cifar_prune_STE", *LINE, *model, "--epochs", 2, "--Prun_Int", 1, "-c", tmp_path)
    bsq(*line, "--max-steps", 3)
    (tmp_path / "requantized-000000000.pth.tar").write_bytes(b"torn")
    said = bsq(*line, "--resume", "auto").stderr
    assert "requantized-000000000.pth.tar is left out of the choice" in said
    assert result_of(tmp_path)["finished"] is True
