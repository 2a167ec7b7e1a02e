"""`us3l export`: what is written of which file, and how it is loaded again."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import Result

import lowbit
from lowbit.models.create import create_model

Us3l = Callable[..., Result]
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LIMITS = ("--limit-train", 40)


@pytest.fixture(scope="module")
def checkpoint(digits_run: tuple[Path, Result]) -> Path:
    return digits_run[0] / "checkpoint.pth.tar"


@torch.no_grad()
def test_of_a_pretraining(us3l: Us3l, checkpoint: Path, tmp_path: Path) -> None:
    """Statistics are re-estimated; the line that is said builds the net."""
    lines = us3l("export", checkpoint, "--width", 0.5, *LIMITS, "--output", tmp_path / "out").stdout.splitlines()
    made, loaded = lines[-1].split("; ")
    answers = [eval(text, {"timm": timm, "lowbit": lowbit}).eval()(X) for text in (made, loaded)]
    answers.append(torch.export.load(tmp_path / "out/subnetwork.pt2").module()(X))
    assert answers[0].shape == (4, 32) and all(torch.allclose(answers[0], other, atol=1e-6) for other in answers)
    said = json.loads((tmp_path / "out/subnetwork.json").read_text())
    assert said["statistics"] == "re-estimated on 32 training pictures" and "label_names" not in said["pretrained_cfg"]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert (result["width"], result["macs"], result["parameters"]) == (0.5, said["macs"], said["parameters"])
    packed = us3l("export", checkpoint, "--width", 0.5, *LIMITS, "--format", "packed", "--output", tmp_path / "packed")
    assert packed.stdout.startswith(str(tmp_path / "packed/packed.safetensors"))
    assert torch.allclose(lowbit.load(tmp_path / "packed/packed.safetensors")(X), answers[0], atol=1e-6)


CONFIG = """\
MODEL: {ARCH: us_cifar_resnet8_1x1, INPUTSHAPE: [8, 8], OFA: {WIDTH_MULT: 0.25, CALIBRATE_BN: true}}
TRAIN: {DATASET: digits, EPOCHS: 1, BATCH_SIZE: 20, LINEAR_EVAL: true, LR_SCHEDULER: {BASE_LR: 0.1}}
"""


def test_of_files_with_statistics(us3l: Us3l, small: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A calibrated backbone and a classifier, with no picture read: what `lowbit.load` gives of either."""
    given = f"MODEL.PRETRAINED={checkpoint}"
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    for command, name in (("calibrate", "checkpoint_width_0.25.pth.tar"), ("linear", "checkpoint.pth.tar")):
        limits = (*LIMITS, "--limit-eval", 10) if command == "linear" else LIMITS
        us3l(command, "--config", config, given, *limits, "--output", tmp_path / command)
        path, out = tmp_path / command / name, tmp_path / f"export of {command}"
        us3l("export", path, "--data", tmp_path / "nowhere", "--output", out)
        wanted, found = lowbit.load(path), lowbit.load(out / "subnetwork.safetensors")
        assert torch.equal(found(X), wanted(X)) and found(X).shape == (4, 16 if command == "calibrate" else 10)
        said = json.loads((out / "subnetwork.json").read_text())
        assert (said["statistics"], said["width"]) == ("of the file", 0.25)
        assert said["num_classes"] == (0 if command == "calibrate" else 10)
        assert ("label_names" in said["pretrained_cfg"]) == (command == "linear")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--output is missing"),
        (("--output", "out", "--width", "0.1"), "--width 0.1 was not trained"),
        (("--output", "out", "--width", "2"), "2.0 is not in the range"),
        (("--output", "out", "--pretrained"), "--pretrained"),
        (("--output", "out", "--calibration", "1"), "CALIBRATION_PICTURES=1"),
    ],
)
def test_what_is_refused(
    us3l: Us3l, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[object, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    error = us3l("export", checkpoint, *LIMITS, *more, code=2).stderr
    assert said in " ".join(error.split()) and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_vision_transformer_has_no_export(us3l: Us3l, tmp_path: Path) -> None:
    torch.save(create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.pth")
    line = (
        "export",
        tmp_path / "vit.pth",
        "--arch",
        "us_test_vit",
        "--output",
        tmp_path / "out",
        "--dataset",
        "digits",
    )
    error = us3l(*line, code=2).stderr
    assert "no ordinary sub-network" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_dry_run(us3l: Us3l, checkpoint: Path, tmp_path: Path) -> None:
    said: Any = us3l("export", checkpoint, *LIMITS, "--dry-run", "--output", tmp_path / "out").stdout
    assert "net: cifar_resnet8_1x1" in said and "macs: " in said and not list(tmp_path.iterdir())
