"""`bsq export`: fixed ranges in the place of each batch's, what the net's user needs, and what happens without data."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import lowbit
from lowbit.checkpoint.read import read_checkpoint
from lowbit.export.codes import read_codes
from lowbit.models.weight_file import read_weights
from lowbit.quant.calibrate import unfixed

NAMES = tuple("0123456789")


def export(bsq: Any, model: Path, folder: Path, *more: object, code: int = 0) -> Result:
    found: Result = bsq("export", "--model", model, "--output", folder, *more, code=code)
    return found


def logits(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


@pytest.fixture(scope="module")
def exported(digits_run: Path, bsq: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export") / "p"
    said = export(bsq, digits_run / "bits8/checkpoint.pth.tar", folder, "--limit-train", 400).stdout
    assert "with ranges of each batch" in said and "packed.safetensors" in said
    return folder


def test_an_export_answers_for_one_picture_as_in_any_batch(exported: Path, digits_run: Path) -> None:
    x = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x[1:] *= 5  # the others' values are larger, and would widen the range
    net, made = lowbit.load(exported / "packed.safetensors"), lowbit.load(digits_run / "bits8/checkpoint.pth.tar")
    assert torch.allclose(logits(net, x)[:1], logits(net, x[:1]), atol=1e-4) and not unfixed(net)
    assert not torch.allclose(logits(made, x)[:1], logits(made, x[:1]), atol=1e-2)  # training's own, the authors'


def test_figures_before_and_after(exported: Path, digits_run: Path) -> None:
    result = json.loads((exported / "result.json").read_text())
    assert result["top1_batch_ranges"] == json.loads((digits_run / "bits8/result.json").read_text())["top1"]
    assert abs(result["top1"] - result["top1_batch_ranges"]) < 10


@pytest.mark.parametrize("file", ["export", "bits8/checkpoint.pth.tar", "float/checkpoint.pth.tar", "bits8/backbone"])
def test_files_say_how_pictures_are_shown(exported: Path, digits_run: Path, file: str) -> None:
    path = exported / "packed.safetensors" if file == "export" else digits_run / file
    path = path.with_suffix(".safetensors") if file.endswith("backbone") else path
    net: Any = lowbit.load(path)
    found, cfg = resolve_model_data_config(net), net.pretrained_cfg
    assert found["input_size"] == (3, 8, 8) and found["crop_pct"] == 1.0 and found["crop_mode"] == "center"
    assert found["mean"] == pytest.approx((0.3053,) * 3) and found["std"] == pytest.approx((0.3760,) * 3)
    assert cfg.get("label_names") == (None if file.endswith("backbone") else NAMES)
    assert cfg["num_classes"] == net.num_classes and cfg["classifier"] == "fc"


def test_without_data(digits_run: Path, bsq: Any, tmp_path: Path) -> None:
    model = digits_run / "bits8/checkpoint.pth.tar"
    said = export(bsq, model, tmp_path / "p", "-d", "cifar10", "--data", tmp_path / "none", code=2).stderr
    assert "--keep-batch-ranges" in said and len(said.splitlines()) == 1 and len(said) <= 320
    assert not (tmp_path / "p").exists()
    export(bsq, model, tmp_path / "p", "-d", "cifar10", "--data", tmp_path / "none", "--keep-batch-ranges")
    assert unfixed(lowbit.load(tmp_path / "p/packed.safetensors"))
    assert read_codes(tmp_path / "p/packed.safetensors")[0]["recipe"]["pretrained_cfg"]["label_names"] == list(NAMES)


def test_ranges_that_are_fixed_need_no_data(digits_run: Path, bsq: Any, tmp_path: Path) -> None:
    line = ("convert", "-d", "digits", "-a", "cifar_resnet8_1x1", "--Nbits", 4, "--act-range", "running", "-c")
    bsq(*line, tmp_path / "c", "--model", digits_run / "float/checkpoint.pth.tar")
    made = tmp_path / "c/checkpoint.pth.tar"
    export(bsq, made, tmp_path / "p", "-d", "cifar10", "--data", tmp_path / "none")
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(
        logits(lowbit.load(tmp_path / "p/packed.safetensors"), x), logits(lowbit.load(made), x), atol=1e-4
    )


def test_a_dry_run_writes_nothing(digits_run: Path, bsq: Any, tmp_path: Path) -> None:
    said = export(bsq, digits_run / "bits8/checkpoint.pth.tar", tmp_path / "p", "--dry-run").stdout
    assert "ranges to set: 6" in said and not list(tmp_path.iterdir())


@pytest.mark.parametrize("cfg", [3, {}, {"mean": [1, 2]}, {"mean": [0.5] * 3, "std": [0.0] * 3}, {"std": "x"}])
def test_a_damaged_description(digits_run: Path, tmp_path: Path, cfg: Any) -> None:
    state = read_checkpoint(digits_run / "bits8/checkpoint.pth.tar")
    torch.save({**state, "pretrained_cfg": cfg}, tmp_path / "x.pth.tar")
    with pytest.raises(lowbit.errors.InputError, match="pretrained_cfg"):
        lowbit.load(tmp_path / "x.pth.tar")


def test_a_backbone_says_no_classes(digits_run: Path) -> None:
    said = read_weights(digits_run / "float/backbone.safetensors").said["pretrained_cfg"]
    assert "label_names" not in said and said["input_size"] == [3, 8, 8]
