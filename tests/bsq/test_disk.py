"""What the way from floats to a packed file leaves on the disk, and what a dry run says of it."""

import re
from pathlib import Path
from typing import Any

import pytest

from lowbit.checkpoint.read import read_checkpoint

NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", 64, "--limit-eval", 20)
SGD = ("--epochs", 1, "--train-batch", 32)


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_the_way_to_a_packed_file(digits_run: Path, bsq: Any, tmp_path: Path) -> None:
    bits, tuned = tmp_path / "bits", tmp_path / "tuned"
    bsq("cifar_prune_STE", *NET, *SGD, "--L1", "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", bits)
    bsq("cifar_finetune", *NET, *SGD, "--model", bits / "checkpoint.pth.tar", "-c", tuned)
    floats = (bits / "backbone.safetensors").stat().st_size
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):  # binary planes as bits, no momentum
        assert (bits / name).stat().st_size < floats and read_checkpoint(bits / name)["optimizer"] == {}
    assert (tuned / "best_bin.pth.tar").stat().st_size < floats
    assert not list(bits.glob("*.prev.*")) and not list(bits.glob("requantized-*"))
    whole = sum(bytes_of(folder) for folder in (digits_run / "bits8", bits, tuned))
    assert whole < 20 * floats  # separate floats for planes and momentum: 120 times
    bsq("cifar_prune_STE", *NET, *SGD, "--L1", "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", bits,
        "--resume", "auto")  # fmt: skip
    assert read_checkpoint(bits / "checkpoint.pth.tar")["optimizer"] == {}


@pytest.mark.parametrize("command", ["train", "convert", "cifar_prune_STE", "cifar_finetune"])
def test_a_plan_names_bytes(digits_run: Path, bsq: Any, tmp_path: Path, command: str) -> None:
    model = () if command == "train" else ("--model", digits_run / "bits8/checkpoint.pth.tar")
    model = ("--model", digits_run / "float/checkpoint.pth.tar") if command == "convert" else model
    more = ("--Nbits", 8) if command == "convert" else SGD
    said = bsq(command, *NET, *more, *model, "-c", tmp_path / "c", "--dry-run").stdout
    found = {name: int(number.replace(",", "")) for name, number in re.findall(r"^(bytes .*): ([\d,]+)$", said, re.M)}
    assert found["bytes in memory"] > 10**7 and not list(tmp_path.iterdir())
    if command == "convert":
        assert found["bytes on disk"] < 1.1 * bytes_of(digits_run / "bits8")
        return
    weights = 78_000 * 4 * {"train": 2, "cifar_prune_STE": 32, "cifar_finetune": 2}[command]  # with momentum
    assert 0.9 * weights < found["bytes of a checkpoint"] < 1.1 * weights
    assert found["bytes on disk at most"] in (3 * found["bytes of a checkpoint"], 4 * found["bytes of a checkpoint"])
