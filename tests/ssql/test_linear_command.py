"""`ssql linear` and `ssql default` on the digits: probes, fine-tuning, bits, resuming, files that do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image
from torch import Tensor

from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import balanced_subset
from lowbit.data.recipe import DIGITS, plain
from lowbit.errors import InputError
from lowbit.evaluate.classify import classify
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.train.process import make_accelerator
from ssql import config as ssql_config
from ssql.evaluation import open_pretrained

SHIPPED = Path(ssql_config.__file__).parent / "configs"
NAMES = sorted(
    path.relative_to(SHIPPED).as_posix()
    for path in SHIPPED.glob("*/*.yaml")
    if "linear_eval" in path.name or "finetune" in path.name
)
Ssql = Callable[..., Result]
LIMITS = ("--limit-train", 240, "--limit-eval", 100)
CHECKPOINT = "checkpoint.pth.tar"
WHOLE = ("TRAIN.LINEAR_EVAL=False", "TRAIN.LR_SCHEDULER.BASE_LR=0.01")
LOW = ("QUANT.W.BIT=4", "QUANT.A.BIT=4")

PROBE = """\
BASE_CONFIG: configs/base/evaluation.yaml
SEED: 3
MODEL: {ARCH: cifar_resnet8_1x1, INPUTSHAPE: [8, 8]}
TRAIN:
  LINEAR_EVAL: true
  EPOCHS: 2
  DATASET: digits
  BATCH_SIZE: 32
  PRINT_FREQ: 4
  LR_SCHEDULER: {BASE_LR: 0.5, DECAY_MILESTONES: [1]}
AUG: {TRAIN: {RANDOMCROP: {ENABLE: true, PADDING: 1}}}
"""


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def tensors_of(folder: Path, name: str = CHECKPOINT) -> dict[str, Tensor]:
    return torch.load(folder / name, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "probe.yaml"
    path.write_text(PROBE)
    return path


@pytest.fixture(scope="module")
def pretrained(digits_run: tuple[Path, Result]) -> str:
    return f"MODEL.PRETRAINED={digits_run[0] / CHECKPOINT}"


@pytest.fixture(scope="module")
def probed(
    ssql: Ssql, config: Path, pretrained: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Result, tuple[object, ...]]:
    """The folder of a finished probe at 4/4 bits, what it said, and its command line without the folder."""
    line = ("linear", "--config", config, *LIMITS, *LOW, pretrained)
    folder = tmp_path_factory.mktemp("runs") / "probe"
    return folder, ssql(*line, "--output", folder), line


def test_a_probe_says_and_writes_what_it_found(
    probed: tuple[Path, Result, object], digits_run: tuple[Path, Result]
) -> None:
    folder, said, _ = probed
    result, lines = result_of(folder), said.stdout.splitlines()
    assert [line.split("\t")[0] for line in lines[:4]] == [f"Epoch: [{e}][{s}/8]" for e in range(2) for s in (4, 8)]
    assert lines[4] == f" * Acc@1 {result['top1']:.3f} Acc@5 {result['top5']:.3f}"  # after the last epoch alone
    assert lines[5].startswith(f" * Acc@1 {result['top1_bn']:.3f} Acc@5 {result['top5_bn']:.3f} with")
    assert {
        "protocol": "probe",
        "w_bits": 4,
        "a_bits": 4,
        "classes": 10,
        "features": "computed",
    }.items() <= result.items()
    assert (result["global_batch"], result["steps"], result["train_transform"]) == (32, 16, "training")
    names = {"checkpoint.prev.pth.tar", CHECKPOINT, "config.json", "metrics.jsonl", "result.json", "train.log"}
    assert {path.name for path in folder.iterdir()} - {".lock"} == names
    backbone = open_pretrained(digits_run[0] / CHECKPOINT).model.state_dict()
    trained = tensors_of(folder)
    assert all(torch.equal(trained[key], value) for key, value in backbone.items())
    left = {key for key in trained if key not in backbone}
    assert {key for key in left if ".observer." not in key} == {"fc.weight", "fc.bias"} and len(left) > 10


def test_the_saved_classifier_is_the_one_that_was_evaluated(probed: tuple[Path, Result, object]) -> None:
    net = load(probed[0] / CHECKPOINT)
    test = load_dataset("digits", Path(), "test")
    test = test.subset(balanced_subset(test.labels, 100))
    scores = classify(net, EvalLoader(test, plain(DIGITS), batch_size=64), make_accelerator("no", cpu=True))
    assert scores.top1 == result_of(probed[0])["top1"]
    assert scores.loss == pytest.approx(result_of(probed[0])["loss"], rel=1e-6)
    found = open_pretrained(probed[0] / CHECKPOINT)
    assert found.config is not None and found.config.QUANT.W.BIT == 4 and found.size == (3, 8, 8)


@pytest.mark.parametrize(
    ("entry", "value", "said"),
    [("classes", 11, "do not fit"), ("classes", "ten", "classes 'ten'"), ("classes", 10**9, "classes")],
)
def test_a_damaged_checkpoint_is_refused(
    probed: tuple[Path, Result, object], tmp_path: Path, entry: str, value: object, said: str
) -> None:
    saved = torch.load(probed[0] / CHECKPOINT, weights_only=True)
    torch.save(saved | {entry: value}, tmp_path / "other.pth.tar")
    with pytest.raises(InputError, match=said):
        load(tmp_path / "other.pth.tar")


@pytest.mark.parametrize("kind", ["probe", "cached", "trained"])
def test_two_parts_equal_an_unbroken_run(
    ssql: Ssql, config: Path, pretrained: str, probed: Any, tmp_path: Path, same_run: Callable[[Path, Path], None],
    kind: str,
) -> None:  # fmt: skip
    more = {"probe": (), "cached": ("--cache-features",), "trained": ("--val-split", 0.2, *WHOLE)}[kind]
    line = (*(("default", *probed[2][1:]) if kind == "trained" else probed[2]), *more)
    whole = probed[0] if kind == "probe" else tmp_path / "whole"
    said = probed[1] if kind == "probe" else ssql(*line, "--output", whole)
    first = ssql(*line, "--output", tmp_path / "parts", "--max-steps", 7)
    assert result_of(tmp_path / "parts")["finished"] is False
    second = ssql(*line, "--output", tmp_path / "parts", "--resume", "auto")
    same_run(whole, tmp_path / "parts")
    assert first.stdout + second.stdout == said.stdout
    other = ssql(*line, "--output", tmp_path / "parts", "--resume", "auto", "QUANT.CALIBRATION.PICTURES=9", code=2)
    assert "QUANT.CALIBRATION.PICTURES 1024" in other.stderr


def test_a_run_goes_on_from_the_weights_that_it_began_with(
    ssql: Ssql, config: Path, digits_run: tuple[Path, Result], tmp_path: Path
) -> None:
    """Told by what a file holds, not by its name; it may be left out."""
    line = ("linear", "--config", config, "--limit-train", 32, "--limit-eval", 10, "--output", tmp_path / "out")
    here, moved = digits_run[0] / CHECKPOINT, tmp_path / "moved"
    ssql(*line, f"MODEL.PRETRAINED={here}", "--max-steps", 1)
    moved.write_bytes((digits_run[0] / "backbone.safetensors").read_bytes())
    ssql(*line, f"MODEL.PRETRAINED={moved}", "--resume", "auto", "--max-steps", 1)
    ssql(*line, "--resume", "auto")
    other = f"MODEL.PRETRAINED={digits_run[0] / 'checkpoint_0000.pth.tar'}"
    assert "with content of MODEL.PRETRAINED" in ssql(*line, other, "--resume", "auto", code=2).stderr


def test_default_keeps_the_best_and_whole_nets_are_trained_at_bits(
    ssql: Ssql, config: Path, pretrained: str, tmp_path: Path, digits_run: tuple[Path, Result]
) -> None:
    line = ("default", "--config", config, *LIMITS, *LOW, *WHOLE, pretrained, "--output", tmp_path)
    said = ssql(*line).stdout
    result = result_of(tmp_path)
    assert sum(line.startswith(" * Acc@1") for line in said.splitlines()) == 2  # every epoch
    assert result["protocol"] == "training" and "top1_bn" not in result
    assert result["best"]["top1"] >= result["top1"]
    best = torch.load(tmp_path / "model_best.pth.tar", weights_only=True)
    assert best["step"] == result["best"]["step"] and best["classes"] == 10
    before, after = open_pretrained(digits_run[0] / CHECKPOINT).model.state_dict(), tensors_of(tmp_path)
    moved = {key for key, value in before.items() if not torch.equal(after[key], value)}
    assert moved == before.keys()
    assert "layer1.0.conv1.weight" in open_pretrained(tmp_path / "backbone.safetensors").model.state_dict()


def test_a_probe_tells_a_trained_net_from_a_random_one(ssql: Ssql, config: Path, tmp_path: Path) -> None:
    limits = ("--limit-train", 400, "--limit-eval", 200)
    whole = ("default", "--config", config, *limits, "TRAIN.LINEAR_EVAL=False", "TRAIN.LR_SCHEDULER.TYPE=cosine")
    ssql(*whole, "--output", tmp_path / "random", "--max-steps", 1, "TRAIN.LR_SCHEDULER.BASE_LR=1e-6")
    ssql(*whole, "--output", tmp_path / "trained", "TRAIN.EPOCHS=5", "TRAIN.LR_SCHEDULER.BASE_LR=0.05")
    top1 = {}
    for name in ("random", "trained"):
        weights = f"MODEL.PRETRAINED={tmp_path / name / CHECKPOINT}"
        line = ("linear", "--config", config, *limits, "--cache-features", weights, "TRAIN.EPOCHS=10")
        ssql(*line, "--output", tmp_path / f"probe of {name}", "TRAIN.LR_SCHEDULER.DECAY_MILESTONES=[6, 8]")
        result = result_of(tmp_path / f"probe of {name}")
        assert (result["features"], result["train_transform"]) == ("cached", "evaluation")
        top1[name] = result["top1"]
    assert top1["trained"] > 85 and top1["trained"] > top1["random"] + 5


def test_cached_features_give_the_same_probe(ssql: Ssql, config: Path, pretrained: str, tmp_path: Path) -> None:
    """A training transform without randomness is cached by itself; one that is mirrored with no probability is not."""
    line = ("linear", "--config", config, *LIMITS, pretrained, "TRAIN.EPOCHS=2", "AUG.TRAIN.RANDOMCROP.PADDING=0")
    ssql(*line, "--output", tmp_path / "computed")
    ssql(*line, "--output", tmp_path / "cached", "AUG.TRAIN.RANDOMCROP.ENABLE=False")
    computed, cached = (result_of(tmp_path / name) for name in ("computed", "cached"))
    assert (computed["features"], cached["features"]) == ("computed", "cached")
    assert cached["top1"] == computed["top1"] and cached["loss"] == pytest.approx(computed["loss"], rel=1e-4)
    a, b = (tensors_of(tmp_path / name)["fc.weight"] for name in ("computed", "cached"))
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_fine_tuning_starts_from_the_probes_classifier(ssql: Ssql, config: Path, probed: Any, tmp_path: Path) -> None:
    line = ("linear", "--config", config, *LIMITS, *LOW, f"MODEL.PRETRAINED={probed[0] / CHECKPOINT}")
    still = ("TRAIN.LINEAR_EVAL=False", "TRAIN.EPOCHS=1", "TRAIN.LR_SCHEDULER.BASE_LR=1e-9")
    ssql(*line, *still, "--output", tmp_path / "fresh")
    ssql(*line, *still, "--output", tmp_path / "warm", "TRAIN.WARMUP_FC=True")
    head = tensors_of(probed[0])["fc.weight"]
    torch.testing.assert_close(tensors_of(tmp_path / "warm")["fc.weight"], head)
    assert not torch.allclose(tensors_of(tmp_path / "fresh")["fc.weight"], head)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 12 pictures of two classes, and weights of a toy net in torchvision's form."""
    folder = tmp_path_factory.mktemp("toys")
    for number in range(12):
        path = folder / ("train", "train", "val")[number % 3] / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + number, 44), (20 * number, 99, 0)).save(path)
    torch.save(create_model("test_resnet", num_classes=5).state_dict(), folder / "toy.pth")
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("imagenet", "ssl_qat", "cifar/resnet50"))])
def test_each_shipped_config_for_large_pictures_runs(ssql: Ssql, toys: Path, tmp_path: Path, name: str) -> None:
    keys = ("MODEL.ARCH=test_resnet", "MODEL.INPUTSHAPE=(32, 32)", "MODEL.NUM_CLASSES=2", "TRAIN.DATASET=imagenet")
    keys += ("TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=4", "TRAIN.WARMUP_FC=False", "AUG.EVALUATION.CENTERCROP.ENABLE=True")
    line = ("linear", "--config", f"configs/{name}", "--data", toys, "-j", 0, f"MODEL.PRETRAINED={toys / 'toy.pth'}")
    ssql(*line, "--output", tmp_path, *keys, "AUG.EVALUATION.RESIZE.SIZE=(36, 36)")
    result = result_of(tmp_path)
    assert result["finished"] and result["steps"] == 2 and 0 <= result["top1"] <= 100
    assert result["protocol"] == ("training" if "finetune" in name else "probe")


def test_unreadable_pictures_do_not_change_the_steps_of_cached_features(
    ssql: Ssql, toys: Path, tmp_path: Path, same_run: Callable[[Path, Path], None]
) -> None:
    """Nine pictures in batches of four are three steps, eight would be two: three are planned, trained and resumed."""
    shutil.copytree(toys, tmp_path / "data")
    Image.new("RGB", (44, 44), (9, 99, 0)).save(tmp_path / "data/train/a/12.png")
    (tmp_path / "data/train/a/0.png").write_bytes(b"no picture")
    keys = ("MODEL.ARCH=test_resnet", "MODEL.INPUTSHAPE=(32, 32)", "MODEL.NUM_CLASSES=2", "TRAIN.DATASET=imagenet")
    keys += ("TRAIN.EPOCHS=2", "TRAIN.BATCH_SIZE=4", "AUG.EVALUATION.CENTERCROP.ENABLE=True")
    keys += ("AUG.EVALUATION.RESIZE.SIZE=(36, 36)", "TRAIN.LINEAR_EVAL=True", f"MODEL.PRETRAINED={toys / 'toy.pth'}")
    line = (
        "linear",
        "--config",
        "configs/imagenet/resnet18_linear_eval_imagenet.yaml",
        "--data",
        tmp_path / "data",
        "-j",
        0,
        *keys,
    )
    line += ("--cache-features", "--max-corrupt", 0.5)
    ssql(*line, "--output", tmp_path / "whole")
    ssql(*line, "--output", tmp_path / "parts", "--max-steps", 4)
    ssql(*line, "--output", tmp_path / "parts", "--resume", "auto")
    same_run(tmp_path / "whole", tmp_path / "parts")
    found = result_of(tmp_path / "whole")
    assert (found["features"], found["steps"]) == ("computed", 6)
    assert json.loads((tmp_path / "whole/config.json").read_text())["features"] == "computed"


@pytest.mark.data
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cifar/resnet18")])
def test_each_shipped_config_for_cifar_runs(
    ssql: Ssql, cifar10_root: Path, pretrained: str, tmp_path: Path, name: str
) -> None:
    keys = ("MODEL.ARCH=cifar_resnet8_1x1", "MODEL.INPUTSHAPE=(32, 32)", "TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=10")
    line = ("linear", "--config", f"./configs/{name}", "--data", cifar10_root, "--limit-train", 20, "--limit-eval", 10)
    ssql(*line, pretrained, *keys, "--output", tmp_path)
    assert result_of(tmp_path)["steps"] == 2 and result_of(tmp_path)["classes"] == 10


def test_a_dry_run_tells_the_plan_and_writes_nothing(ssql: Ssql, config: Path, pretrained: str, tmp_path: Path) -> None:
    line = ("linear", "--config", config, *LIMITS, *LOW, pretrained, "--dry-run", "--output", tmp_path / "out")
    plan = dict(
        line.split(": ", 1) for line in ssql(*line, "TRAIN.GLOBAL_BATCH=64", "--keep-global-batch").stdout.splitlines()
    )
    assert (plan["protocol"], plan["w_bits"], plan["steps"], plan["global_batch"]) == ("probe", "4", "8", "64")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("MODEL.PRETRAINED=''",), "MODEL.PRETRAINED is empty"),
        (("MODEL.PRETRAINED=nowhere.pth.tar",), "nowhere.pth.tar is not a file"),
        (("MODEL.PRETRAINED=OTHER",), "none of its tensors"),
        (("MODEL.ARCH=cifar_resnet14_1x1",), "it holds a cifar_resnet8_1x1, not a cifar_resnet14_1x1"),
        (("MODEL.ARCH=",), "MODEL.ARCH is empty"),
        (("MODEL.NUM_CLASSES=11",), "MODEL.NUM_CLASSES=11: digits has 10 classes"),
        (("TRAIN.WARMUP_FC=True",), "should hold a classifier of 10 classes and holds none"),
        (("TRAIN.WARMUP_FC=True", "MODEL.PRETRAINED=''"), "TRAIN.WARMUP_FC"),
        (("TRAIN.LR_SCHEDULER.BASE_LR=0",), "TRAIN.LR_SCHEDULER.BASE_LR=0"),
        (("--pretrained",), "--pretrained"),
        (("--val-split", "0.1"), "--val-split"),
        (("--cache-features", "TRAIN.LINEAR_EVAL=False"), "--cache-features"),
        (("QUANT.BIT_CONFIG=[{conv7: {w: 4}}]", *LOW), "conv7"),
        (("AUG.TRAIN.RANDOMERASE.PROB=0.5",), "AUG.TRAIN.RANDOMERASE.PROB=0.5"),
        (("MODEL.INPUTSHAPE=(16, 16)",), "enable AUG.EVALUATION.RESIZE"),
        (("TRAIN.LINEAR_EVAL=False", "TRAIN.BATCH_SIZE=13"), "batch norm needs two"),  # 40 pictures leave one
        (("MODEL.CHECKPOINT=SSL",), "--resume (MODEL.CHECKPOINT)"),
        (("MODEL.ARCH=test_vit", "TRAIN.LINEAR_EVAL=False", "MODEL.PRETRAINED="), "take pictures of 8x8 pixels"),
        (("QUANT.CALIBRATION.PICTURES=1", *LOW), "QUANT.CALIBRATION.PICTURES=1 of 40 training pictures"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    ssql: Ssql, config: Path, digits_run: tuple[Path, Result], tmp_path: Path, args: tuple[str, ...], said: str
) -> None:
    other, out = tmp_path / "Q_torch.pth.tar", tmp_path / "out"
    torch.save({"state_dict": {"features.0.weight": torch.zeros(2, 2)}}, other)
    checkpoint = digits_run[0] / CHECKPOINT
    keys = [arg.replace("OTHER", str(other)).replace("=SSL", f"={checkpoint}") for arg in args]
    given = [] if any(key.startswith("MODEL.PRETRAINED") for key in keys) else [f"MODEL.PRETRAINED={checkpoint}"]
    limits = ("--limit-train", 40, "--limit-eval", 20)
    result = ssql("linear", "--config", config, "--output", out, *limits, *given, *keys, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not out.exists()


def test_another_normalisation_than_pretrainings_is_told(
    ssql: Ssql, config: Path, pretrained: str, tmp_path: Path
) -> None:
    line = ("linear", "--config", config, *LIMITS, pretrained, "--output", tmp_path, "--dry-run")
    assert "mean and std" not in ssql(*line).stderr
    keys = ("AUG.TRAIN.NORMLIZATION.MEAN=[0.5, 0.5, 0.5]", "AUG.TRAIN.NORMLIZATION.STD=[1, 1, 1]")
    assert "mean and std" in ssql(*line, *keys).stderr
