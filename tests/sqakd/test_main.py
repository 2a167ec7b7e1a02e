"""`sqakd main`: folders with and without classes, its own pictures and rates, one optimizer's settings for both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image

from lowbit.data.geometry import PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import ColorJitter
from lowbit.description import show
from lowbit.metrics import read_metrics
from sqakd.commands import training
from sqakd.options import TrainOptions, train_options
from sqakd.pictures import dataset_of, recipes, shown_side

Sqakd = Callable[..., Result]
NET = ("-a", "cifar_resnet8_1x1", "--image-size", 16, "-b", 4, "--epochs", 2, "-j", 0, "--print-freq", 1)
LAST = "checkpoints/checkpoint.pth.tar"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, eight training pictures and four others; `flat`: the same eight without classes."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for place, count in (("train/a", 4), ("train/b", 4), ("val/a", 2), ("val/b", 2), ("flat", 8)):
        (root / place).mkdir(parents=True)
        for number in range(count):
            pixels = random.integers(0, 255, (20, 24, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / place / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def float_net(sqakd: Sqakd, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fp")
    sqakd("main", folder, *NET, "--not-quant", "--save_root_path", out, "--warmup-steps", 2, "--calibration", 4)
    return out


def test_float_training(float_net: Path) -> None:
    lines = [line for line in read_metrics(float_net / "metrics.jsonl") if line["event"] == "step"]
    rates = [line["lr"]["main"] for line in lines]
    assert rates[:2] == pytest.approx([1e-4, 1e-4]) and rates[-1] < rates[2] + 1e-9
    assert {"last" in name for name in map(str, float_net.rglob("*.tar"))} == {False}
    assert (float_net / "checkpoints/model_best.pth.tar").exists()


def test_students(sqakd: Sqakd, folder: Path, float_net: Path, tmp_path: Path) -> None:
    """By `--distill True` without labels, from a folder without classes: no figures, the teacher's classes."""
    given = ("--teacher_path", float_net / LAST, "--load_pretrain", "True", "--pretrain_path", float_net / LAST)
    more = (*given, "--quantizer", "lsq", "--lr", 1e-2, "--calibration", 4)
    sqakd("main", folder, *NET, *more, "--distill", "True", "--output", tmp_path / "a")
    sqakd("main", folder / "flat", *NET, *more, "--distill", "--output", tmp_path / "b")
    sqakd("main", *NET, *more, "--distill", "False", "--data", folder, "--output", tmp_path / "c")
    found = {name: json.loads((tmp_path / name / "result.json").read_text()) for name in "abc"}
    assert "top1" in found["a"] and "top1" not in found["b"] and found["b"]["classes"] == 2
    seen = {n: {key for line in read_metrics(tmp_path / n / "metrics.jsonl") for key in line} for n in "abc"}
    assert "kl" in seen["a"] & seen["b"] and "ce" in seen["c"] and "ce" not in seen["a"] | seen["b"]
    state: dict[str, Any] = torch.load(tmp_path / "a" / LAST, weights_only=True)
    groups = [state["optimizer"][name]["param_groups"][0] for name in ("main", "quantizer")]
    assert all(group["nesterov"] and group["weight_decay"] == 1e-4 for group in groups)
    said = sqakd("main", folder, *NET, "-e", "--resume", tmp_path / "a" / LAST, "--calibration", 4).stdout
    assert f"{found['a']['top1']:.3f}" in said


def test_what_is_refused(sqakd: Sqakd, folder: Path, float_net: Path) -> None:
    taught = ("--teacher_path", float_net / LAST, "--distill")
    for line, said in (
        ((folder,), "--save_root_path"),
        ((), "the dataset root is given once"),
        ((folder / "train", folder / "val"), "extra argument"),
        ((folder / "flat", "--output", folder / "x"), "cross-entropy reads labels, and"),
        ((folder / "flat", *taught, "vid", "--output", folder / "x"), "beside --distill vid reads labels"),
        ((folder / "flat", *taught, "crd", "--gamma", 0, "--output", folder / "x"), "is not train/<class>/*"),
        ((folder, "--distill", "crds", "--output", folder / "x"), "'crds' is not one of 'kd', 'hint'"),
        ((folder, "--distill", "crd", "--output", folder / "x"), "name its checkpoint, --teacher_path"),
        ((folder / "flat", "--val-split", 0.5, *taught, "--output", folder / "x"), "these pictures have none"),
    ):
        assert said in sqakd("main", *line, *NET, code=2).stderr
    assert not (folder / "x").exists()


@pytest.mark.heavy
@pytest.mark.parametrize(("net", "side"), [("vit_tiny_patch16_224", 224), ("convnext_atto", 32)])
def test_any_timm_net(sqakd: Sqakd, folder: Path, net: str, side: int, tmp_path: Path) -> None:
    """The README's first lines with a net without batch norm: a float net, its student at 4 bits, one packed file."""
    few = (folder, "-a", net, "--image-size", side, "-b", 4, "--epochs", 1, "-j", 0, "--calibration", 4)
    start = tmp_path / "fp" / LAST
    sqakd("main", *few, "--not-quant", "True", "--lr", 0.01, "--save_root_path", tmp_path / "fp")
    taught = ("--load_pretrain", "True", "--pretrain_path", start, "--distill", "True", "--teacher_path", start)
    own = ("--quantizer", "lsq", "--wbits", 4, "--abits", 4, "--lr", 0.001)
    sqakd("main", *few, *own, *taught, "--save_root_path", tmp_path / "out")
    sqakd("export", tmp_path / "out" / LAST, "--output", tmp_path / "net")
    bits = show(tmp_path / "net/packed.safetensors").bits["weights"]
    assert bits[4] > 15 and bits[4] + bits[32] == sum(bits.values())
    assert (tmp_path / "net/packed.safetensors").stat().st_size < 0.4 * start.stat().st_size


@pytest.mark.data
@pytest.mark.heavy
def test_real_pictures(sqakd: Sqakd, tiny_imagenet_root: Path, tmp_path: Path) -> None:
    """Tiny-ImageNet in its raw layout, at its own 64 pixels: a float net, and a student that learns from it."""
    line = (tiny_imagenet_root, *NET[:2], "--image-size", 64, "-b", 16, "-j", 0, "--epochs", 1, "--calibration", 32,
            "--limit-train", 80, "--limit-eval", 40, "--warmup-steps", 2, "--print-freq", 1)  # fmt: skip
    sqakd("main", *line, "--not-quant", "--lr", 0.05, "--output", tmp_path / "fp")
    given = tmp_path / "fp" / LAST
    start = ("--load_pretrain", "--pretrain_path", given, "--distill", "--teacher_path", given)
    sqakd("main", *line, *start, "--quantizer", "pact", "--alpha", 100, "--output", tmp_path / "kd")
    found = json.loads((tmp_path / "kd/result.json").read_text())
    assert found["classes"] == 20 and found["quantized"] == 8
    lines = [line for line in read_metrics(tmp_path / "kd/metrics.jsonl") if line["event"] == "step"]
    assert len(lines) == 5 and all(line["loss"] == pytest.approx(100 * line["kl"], rel=1e-4) for line in lines)


def test_defaults_are_the_original_s() -> None:
    own = train_options("main", arch="resnet18_imagenet", quantizer=None, wbits=None, abits=None, weight_levels=None,
                        act_levels=None, released=True, use_hessian=True, update_every=10, bkwd_scaling_factorW=0.0,
                        bkwd_scaling_factorA=0.0)  # fmt: skip
    assert (own.arch, own.quantizer, own.wbits, own.abits, own.released) == ("resnet18", "dorefa", 4, 4, True)
    assert train_options("main", arch="vgg11_bn").arch == "tiny_vgg11"
    for arch, last in (("resnet18", 1), ("resnet10t", 0)):  # torchvision's draw; that of other nets is timm's
        start = training._start(TrainOptions(command="main", arch=arch), False, 3)
        assert {float(value.mean()) for name, value in start.state_dict().items() if name.endswith("bn2.weight")} == {
            last
        }
    assert train_options("train_fp", arch="vgg13_bn_fp").arch == "cifar_vgg13"


def test_pictures_at_both_sizes(tmp_path: Path) -> None:
    """224 pixels by a resized crop and jitter, evaluated at 256; 64 as they are, out of a margin."""
    some = MemoryPictures("tiny-imagenet", ["a"], torch.zeros(2, 3, 64, 64, dtype=torch.uint8), torch.zeros(2).long())
    own = TrainOptions(command="main", arch="resnet18")
    views, shown = recipes(own, "tiny-imagenet", some, shown_side(own, some))
    assert views.geometry == RandomResizedCrop(224) and shown.geometry == ResizedCenterCrop(256, 224)
    assert views.colour == (ColorJitter(0.2, 0.2, 0.2, 0.0, 1.0),)
    small = TrainOptions(command="main", arch="resnet18", image_size=64)
    views, shown = recipes(small, "tiny-imagenet", some, shown_side(small, some))
    assert views.geometry == PaddedCrop(64, 8) and not views.colour and not shown.is_random
    cifar = TrainOptions(command="train_quant", arch="x", dataset="cifar100")
    hundred = MemoryPictures("cifar100", ["a"], torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2).long())
    assert recipes(cifar, "cifar100", hundred, 32)[0].channels.mean == (0.5071, 0.4867, 0.4408)
    assert dataset_of(own, tmp_path) == "folder"
    (tmp_path / "tiny-imagenet-200/val").mkdir(parents=True)
    (tmp_path / "tiny-imagenet-200/val/val_annotations.txt").touch()
    assert dataset_of(own, tmp_path) == dataset_of(own, tmp_path / "tiny-imagenet-200") == "tiny-imagenet"
