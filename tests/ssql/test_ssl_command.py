"""`ssql ssl` on the digits: what a run writes and says, parts of a run, each method, batches; the authors' line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from PIL import Image

import lowbit.models.create
from lowbit.data.pictures import balanced_subset
from lowbit.metrics import read_metrics
from ssql.cli import cli

Ssql = Callable[..., Result]
Line = tuple[object, ...]
LIMITS = ("--limit-train", 120, "--limit-eval", 60)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def test_a_run_says_and_writes_what_it_found(digits_run: tuple[Path, Result]) -> None:
    folder, said = digits_run
    names = {path.name for path in folder.iterdir()} - {".lock"}
    checkpoints = {
        "checkpoint.pth.tar",
        "checkpoint.prev.pth.tar",
        "checkpoint_0000.pth.tar",
        "checkpoint_0001.pth.tar",
    }
    texts = {"config.json", "metrics.jsonl", "result.json", "train.log", "backbone.safetensors"}
    assert names == checkpoints | texts
    lines = said.stdout.splitlines()
    number = r"-?\d\.\d{3}\(-?\d\.\d{3}\)"
    logged = [
        line
        for line in lines
        if re.fullmatch(rf"Epoch: \[\d\]\[\d/4\]\tLoss: {number}\tCosineSimilarity: {number}", line)
    ]
    assert [line.partition("\t")[0] for line in logged] == [f"Epoch: [{e}][{s}/4]" for e in (0, 1) for s in (2, 4)]
    assert sum(line.startswith(" * k-NN Acc@1 ") for line in lines) == 2 and len(lines) == 6
    result = result_of(folder)
    assert (result["global_batch"], result["batch_per_process"], result["steps"]) == (32, 32, 8)
    assert 10 < result["knn_top1"] <= 100 and result["knn_k"] == 120
    assert result["z_std"] > 0 and 1 <= result["effective_rank"] <= 32 and result["collapsed"] is False
    saved = torch.load(folder / "checkpoint.pth.tar", weights_only=True)
    assert (saved["package"], saved["format"], saved["arch"], saved["epoch"]) == ("ssql", 1, "cifar_resnet8_1x1", 2)
    assert saved["config"]["SSL"]["TYPE"] == "SSQL_SimSiam" and saved["input_size"] == [3, 8, 8]
    assert lowbit.models.create  # registers the net
    net = timm.create_model("cifar_resnet8_1x1", num_classes=0, checkpoint_path=str(folder / "backbone.safetensors"))
    assert torch.equal(net.conv1.weight, saved["state_dict"]["encoder_q.conv1.weight"])


def test_mean_of_an_epoch_is_that_of_its_intervals(digits_run: tuple[Path, Result]) -> None:
    folder, said = digits_run
    epochs = [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "epoch"]
    last = [line for line in said.stdout.splitlines() if "[4/4]" in line]
    for loss, line in zip(epochs, last, strict=True):
        assert float(line.split("(")[-1].rstrip(")")) == pytest.approx(loss, abs=6e-3)  # the last batch is smaller


def test_two_parts_equal_an_unbroken_run(
    ssql: Ssql, digits_line: Line, same_run: Callable[..., None], tmp_path: Path, digits_run: tuple[Path, Result]
) -> None:
    line = (*digits_line, "--output", tmp_path)
    said = ssql(*line, "--max-steps", 3).stdout
    assert result_of(tmp_path)["finished"] is False
    said += ssql(*line, f"MODEL.CHECKPOINT={tmp_path / 'checkpoint.pth.tar'}").stdout
    same_run(tmp_path, digits_run[0])
    assert said == digits_run[1].stdout
    again = ssql(*line, "--resume", tmp_path / "checkpoint.pth.tar", "TRAIN.LR_SCHEDULER.BASE_LR=0.1", code=2)
    assert "BASE_LR 0.05" in again.stderr


@pytest.mark.parametrize(
    "kind", ["SimSiam", "BYOL", "MoCo", "SimCLR", "SSQL_BYOL", "SSQL_MoCo", "SSQL_SimCLR", "RSSQL_SimSiam"]
)
def test_each_method_runs(ssql: Ssql, small: Path, tmp_path: Path, kind: str) -> None:
    ssql("ssl", "--config", small, "--output", tmp_path, *LIMITS, f"SSL.TYPE={kind}", "TRAIN.EPOCHS=1")
    result = result_of(tmp_path)
    assert result["finished"] and result["steps"] == (3 if kind.endswith("MoCo") else 4)  # the last batch is dropped
    state = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    first = {key.partition(".")[0] for key in state}
    with_target, with_queue = kind.endswith(("BYOL", "MoCo")), kind.endswith("MoCo")
    assert ("encoder_k" in first) == with_target
    assert ("queue" in first) == with_queue
    if with_queue:
        assert state["queue"].shape == (32, 128) and int(state["queue_ptr"]) == 96


def test_another_batch_than_stated_is_told_or_accumulated(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    line = ("ssl", "--config", small, *LIMITS, "TRAIN.EPOCHS=1", "TRAIN.GLOBAL_BATCH=64", "--probe-every", 0)
    said = ssql(*line, "--output", tmp_path / "a")
    assert "TRAIN.GLOBAL_BATCH=64" in said.stderr and "--keep-global-batch" in said.stderr
    assert [result_of(tmp_path / "a")[key] for key in ("global_batch", "steps")] == [32, 4]
    said = ssql(*line, "--output", tmp_path / "b", "--keep-global-batch")
    assert "TRAIN.GLOBAL_BATCH=64" not in said.stderr
    keys = ("global_batch", "batch_per_process", "accumulate_parts", "steps")
    assert [result_of(tmp_path / "b")[key] for key in keys] == [64, 32, 2, 2]


def test_optimizer_and_schedule_can_be_others_than_the_authors(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    line = ("ssl", "--config", small, "--output", tmp_path, *LIMITS, "SSL.TYPE=SimSiam", "--probe-every", 0)
    keys = ("TRAIN.LR_SCHEDULER.DECAY_MILESTONES=[1]", "TRAIN.OPTIMIZER.MOMENTUM=0.8", "TRAIN.PRINT_FREQ=1")
    chosen = ("--opt", "adamw", "--sched", "step", "--warmup-epochs", 1)
    said = ssql(*line, *keys, *chosen, "TRAIN.LR_SCHEDULER.BASE_LR=0.001")
    assert "DECAY_MILESTONES" not in said.stderr
    found = [line["lr"]["main"] for line in read_metrics(tmp_path / "metrics.jsonl") if line["event"] == "step"]
    assert found == pytest.approx([0.00025, 0.0005, 0.00075, 0.001, *[0.0001] * 4])
    group = torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["optimizer"]["main"]["param_groups"][0]
    assert tuple(group["betas"]) == (0.8, 0.999)
    again = ssql(*line, *keys, "TRAIN.LR_SCHEDULER.BASE_LR=0.001", "--resume", "auto", code=2)
    assert "--opt" in again.stderr and again.stderr.count("\n") == 1
    assert "DECAY_MILESTONES" in ssql(*line, *keys, "--overwrite", "--dry-run").stderr  # of the authors' cosine


def test_a_collapsed_net_is_told(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    line = ("ssl", "--config", small, "--output", tmp_path, *LIMITS, "TRAIN.EPOCHS=1", "SSL.TYPE=SimSiam")
    said = ssql(*line, "TRAIN.LR_SCHEDULER.BASE_LR=5")
    result = result_of(tmp_path)
    assert result["z_std_relative"] < 0.2 and result["collapsed"] is True
    assert "collapsed" in said.stderr


def test_a_dry_run_tells_the_plan_and_writes_nothing(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    said = ssql("ssl", "--config", small, "--output", tmp_path / "out", "--dry-run").stdout
    plan = dict(line.split(": ", 1) for line in said.splitlines())
    assert plan["method"] == "SSQL_SimSiam" and plan["net"] == "cifar_resnet8_1x1"
    assert (plan["steps per epoch"], plan["steps"], plan["global_batch"]) == ("45", "90", "32")
    assert "estimated seconds" in plan
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["SimSiam", "SSQL_SimSiam"])
def test_pictures_that_the_net_cannot_take(ssql: Ssql, small: Path, tmp_path: Path, kind: str) -> None:
    line = ("ssl", "--config", small, "--output", tmp_path / "out", f"SSL.TYPE={kind}", "MODEL.ARCH=test_vit")
    said = ssql(*line, code=2).stderr
    assert "test_vit cannot take pictures of 8x8 pixels" in said and "MODEL.INPUTSHAPE" in said
    assert not list(tmp_path.iterdir())


def test_an_image_folder_without_test_pictures(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    from PIL import Image

    for number in range(8):
        path = tmp_path / f"data/train/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20 + number, 24), (30 * number, 99, 0)).save(path)
    keys = ("TRAIN.DATASET=imagenet", "TRAIN.BATCH_SIZE=4", "TRAIN.EPOCHS=1", "MODEL.INPUTSHAPE=(16, 16)")
    line = ("ssl", "--config", small, "--output", tmp_path / "out", "--data", tmp_path / "data", "-j", 0, *keys)
    said = ssql(*line, code=2).stderr
    assert "val/" in said and "--probe-every 0" in said
    ssql(*line, "--probe-every", 0)
    assert result_of(tmp_path / "out")["pictures"] == 8


@pytest.mark.data
def test_the_authors_line_from_another_folder(
    ssql: Ssql, cifar10_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = ["ssl", "--config", "./configs/cifar/resnet18_ssql_simsiam_cifar.yaml", "--output", "OUT", "-j", "8"]
    said = ssql(*line, "--data", cifar10_root, "--dry-run", "--limit-train", 4, "--limit-eval", 4)
    plan = dict(line.split(": ", 1) for line in said.stdout.splitlines())
    assert plan["net"] == "cifar_resnet18" and plan["parameters"].startswith("29,01")  # 29.01 million, as theirs
    assert (plan["batch_per_process"], plan["steps"]) == ("128", "400")
    assert "TRAIN.GLOBAL_BATCH=512" in said.stderr
    assert not list(tmp_path.iterdir())


LAYOUTS = {"flat": "{}.png", "nested": "trip/{}.png", "with train": "train/day/{}.png"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_pictures_without_classes(tmp_path: Path, small: Path, ssql: Ssql, layout: str) -> None:
    """What self-supervised pretraining is for: no figure of k-NN, those of collapse stay."""
    data, out = tmp_path / "pictures", tmp_path / "out"
    for i in range(40):
        path = data / LAYOUTS[layout].format(f"{i:02d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 9, 3)).astype(np.uint8)).save(path)
    line = ("ssl", "--config", small, "--data", data, "-j", 0, "--probe-every", 1, "--limit-train", 33)
    keys = ("TRAIN.DATASET=folder", "MODEL.INPUTSHAPE=[8, 8]", "TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=11")
    planned = ssql(*line, "--dry-run", "--output", out, *keys)
    assert "classes: 0" in planned.stdout and "training pictures: 33" in planned.stdout and not out.exists()
    said = ssql(*line, "--output", out, *keys)
    assert f"folder {data}: 33 pictures, no classes, so no figure of k-NN" in said.stderr
    assert " * z_std*sqrt(D) " in said.stdout and "k-NN" not in said.stdout
    result = result_of(out)
    assert not [key for key in result if key.startswith("knn")] and (result["pictures"], result["classes"]) == (33, 0)
    assert result["z_std"] > 0 and result["effective_rank"] >= 1 and "collapsed" in result
    assert (out / "backbone.safetensors").is_file()
    chosen = json.loads((out / "config.json").read_text())["chosen"]["train"]
    assert chosen == balanced_subset(torch.zeros(40, dtype=torch.int64), 33).tolist()  # by the seed alone


def test_what_needs_labels_names_them_and_the_layout(
    tmp_path: Path, digits_run: tuple[Path, Result], ssql: Ssql
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    config, out = tmp_path / "probe.yaml", tmp_path / "out"
    config.write_text(
        "BASE_CONFIG: configs/base/evaluation.yaml\nTRAIN: {LINEAR_EVAL: true, DATASET: folder, EPOCHS: 1}\n"
    )
    keys = (
        "TRAIN.LR_SCHEDULER.BASE_LR=1",
        f"MODEL.PRETRAINED={digits_run[0] / 'backbone.safetensors'}",
        "MODEL.ARCH=cifar_resnet8_1x1",
    )
    said = ssql("linear", "--config", config, "--data", tmp_path, "--output", out, *keys, code=2)
    (line,) = said.stderr.splitlines()
    assert f"there is no {tmp_path}/train; pictures are expected as train/<class>/* and val/<class>/*" in line
    assert "labels are needed" in line and "--data" in line and not out.exists()


def test_more_epochs_on_resume(ssql: Ssql, digits_line: Line, digits_run: tuple[Path, Result], tmp_path: Path) -> None:
    """Of a run that is over; fewer than are done are refused."""
    shutil.copytree(digits_run[0], tmp_path / "run")
    line = (*digits_line, "--output", tmp_path / "run", "--resume", "auto")
    assert "nothing to do" in ssql(*line).stderr
    said = ssql(*line, "TRAIN.EPOCHS=1", code=2).stderr
    assert "beyond the 1 epochs of this run" in said and said.count("\n") == 1
    said = ssql(*line, "TRAIN.EPOCHS=3").stderr
    assert "resuming with epochs [3] after [2]" in said and "going on from step 8 of 12: 4 remain" in said
    assert result_of(tmp_path / "run")["steps"] == 12


def test_a_picture_that_cannot_be_read(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    """k-NN asks as many neighbours as can be read, so that no epoch is lost to it."""
    for split, count in (("train", 24), ("val", 4)):
        for number in range(2 * count):
            path = tmp_path / "data" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 5 * number, dtype=np.uint8)).save(path)
    (tmp_path / "data/train/a/0.png").write_bytes(b"no picture")
    data = ("--data", tmp_path / "data", "TRAIN.DATASET=folder", "MODEL.INPUTSHAPE=[8,8]", "-j", 0)
    line = ("ssl", "--config", small, *data, "TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=24", "--probe-every", 1)
    ssql(*line, "--output", tmp_path / "run", "--max-corrupt", 0.1)
    assert result_of(tmp_path / "run")["knn_k"] == 47
    said = ssql(*line, "--max-corrupt", 0, "--output", tmp_path / "other", code=2).stderr
    assert "1 of 48 pictures" in said and not (tmp_path / "other").exists()


def test_a_terminal_shows_the_record_above_a_bar(
    digits_run: tuple[Path, Result], digits_line: Line, terminal: Callable[..., Any], tmp_path: Path
) -> None:
    """Its first epoch."""
    line = [*map(str, digits_line), "--max-steps", "4", "--output", str(tmp_path)]
    terminal(80, lambda: cli(line)).check(digits_run[1].stdout.splitlines()[:3])
