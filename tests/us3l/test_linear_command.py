"""`us3l linear` on the digits: probes and fine-tuning at a width, statistics, resuming, processes, what is refused."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor

from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import balanced_subset
from lowbit.data.recipe import DIGITS, plain
from lowbit.evaluate.classify import classify
from lowbit.loading import load
from lowbit.options import RunOptions
from lowbit.slim.layers import SlimConv2d, set_width_, slimmable_layers
from lowbit.train.bn_statistics import reestimate_batchnorm_
from lowbit.train.process import make_accelerator
from lowbit.train.session import Session
from us3l import config as us3l_config
from us3l.commands.linear import transforms_of
from us3l.config import Ofa
from us3l.evaluation import fixed_pictures, open_pretrained

SHIPPED = Path(us3l_config.__file__).parent / "configs"
NAMES = sorted(path.relative_to(SHIPPED).as_posix() for path in SHIPPED.glob("*/*linear_eval*.yaml"))
Us3l = Callable[..., Result]
LIMITS = ("--limit-train", 60, "--limit-eval", 40)
CHECKPOINT = "checkpoint.pth.tar"
WHOLE = ("TRAIN.LINEAR_EVAL=False", "TRAIN.LR_SCHEDULER.BASE_LR=0.01")

PROBE = """\
BASE_CONFIG: configs/base/linear_cifar.yaml
SEED: 3
MODEL: {ARCH: us_cifar_resnet8_1x1, INPUTSHAPE: [8, 8], NUM_CLASSES: 10, OFA: {CALIBRATION_PICTURES: 50}}
TRAIN:
  EPOCHS: 2
  DATASET: digits
  BATCH_SIZE: 20
  GLOBAL_BATCH: 20
  PRINT_FREQ: 2
  LR_SCHEDULER: {BASE_LR: 0.5, DECAY_MILESTONES: [1]}
"""


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / CHECKPOINT, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "probe.yaml"
    path.write_text(PROBE)
    return path


@pytest.fixture(scope="module")
def pretrained(digits_run: tuple[Path, Result]) -> str:
    return f"MODEL.PRETRAINED={digits_run[0] / CHECKPOINT}"


@pytest.fixture(scope="module")
def line(config: Path, pretrained: str) -> tuple[object, ...]:
    """A command line without its folder: two epochs of three steps at width 0.5."""
    return ("linear", "--config", config, *LIMITS, pretrained)


@pytest.fixture(scope="module")
def probed(us3l: Us3l, line: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """The folder of a finished probe, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "probe"
    return folder, us3l(*line, "--output", folder)


def test_a_probe_says_and_writes_what_it_found(probed: tuple[Path, Result], digits_run: tuple[Path, Result]) -> None:
    folder, said = probed
    result, lines = result_of(folder), said.stdout.splitlines()
    assert lines[-1] == f" * Acc@1 {result['top1']:.3f} Acc@5 {result['top5']:.3f}"  # after the last epoch alone
    assert {
        "protocol": "probe",
        "width": 0.5,
        "classes": 10,
        "features": "computed",
        "steps": 6,
    }.items() <= result.items()
    backbone = torch.load(digits_run[0] / CHECKPOINT, weights_only=True)["state_dict"]
    trained = tensors_of(folder)
    moved = {
        key for key, value in trained.items() if not torch.equal(value, backbone.get(f"encoder_q.{key}", value + 1))
    }
    assert {"fc.weight", "fc.bias"} <= moved and all(key.startswith("fc.") or "running" in key for key in moved)
    saved = torch.load(folder / CHECKPOINT, weights_only=True)
    assert (saved["width"], saved["widths"], saved["classes"], saved["package"]) == (0.5, [0.25, 1.0], 10, "us3l")


def test_the_saved_classifier_is_the_sub_network_that_was_evaluated(probed: tuple[Path, Result]) -> None:
    net: Any = load(probed[0] / CHECKPOINT)
    assert net.conv1.out_channels == 8 and net.fc.in_features == 32 and type(net.bn1) is torch.nn.BatchNorm2d
    test = load_dataset("digits", Path(), "test")
    test = test.subset(balanced_subset(test.labels, 40))
    scores = classify(net, EvalLoader(test, plain(DIGITS), batch_size=64), make_accelerator("no", cpu=True))
    assert scores.top1 == result_of(probed[0])["top1"]
    assert scores.loss == pytest.approx(result_of(probed[0])["loss"], rel=1e-5)


def test_statistics_are_a_cumulative_average_at_the_width(
    probed: tuple[Path, Result], digits_run: tuple[Path, Result]
) -> None:
    net = set_width_(open_pretrained(digits_run[0] / CHECKPOINT).model, 0.5)
    with Session("us3l", RunOptions(workers=0, limit_train=60, seed=3), "digits") as session:
        train = session.pictures("train")
        fixed = fixed_pictures(Ofa(CALIBRATION_PICTURES=50), train, session, net)
        reestimate_batchnorm_(net, fixed.trained(transforms_of("digits", train, 8)[0]))
    trained, own = tensors_of(probed[0]), net.state_dict()
    keys = [key for key in own if "running" in key]
    assert len(keys) == 18 and all(torch.equal(trained[key], own[key]) for key in keys)
    assert not torch.equal(trained["bn1.running_var"][:8], torch.ones(8))
    assert torch.equal(trained["bn1.running_var"][8:], torch.ones(8))  # channels that do not run


@pytest.mark.parametrize("kind", ["probe", pytest.param("cached", marks=pytest.mark.slow), "trained"])
def test_two_parts_equal_an_unbroken_run(
    us3l: Us3l, line: tuple[object, ...], probed: tuple[Path, Result], tmp_path: Path,
    same_run: Callable[[Path, Path], None], kind: str,
) -> None:  # fmt: skip
    line = (*line, *{"probe": (), "cached": ("--cache-features",), "trained": WHOLE}[kind])
    whole = probed[0] if kind == "probe" else tmp_path / "whole"
    if kind != "probe":
        us3l(*line, "--output", whole)
    us3l(*line, "--output", tmp_path / "parts", "--max-steps", 4)
    assert result_of(tmp_path / "parts")["finished"] is False
    us3l(*line, "--output", tmp_path / "parts", "--resume", "auto")
    same_run(whole, tmp_path / "parts")
    other = us3l(*line, "--output", tmp_path / "parts", "--resume", "auto", "MODEL.OFA.WIDTH_MULT=0.75", code=2)
    assert "MODEL.OFA.WIDTH_MULT 0.5" in other.stderr


def test_killed_and_resumed_and_two_processes(
    line: tuple[object, ...], probed: tuple[Path, Result], processes: Any, tmp_path: Path,
    same_run: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    two = processes.start((*line, "--output", tmp_path / "two", "TRAIN.BATCH_SIZE=10"), world=2)
    killed = (*line, "--output", tmp_path / "killed", "--save-every", 1)
    processes.start(killed, kill=(0, 4)).wait(-signal.SIGKILL)
    processes.start((*killed, "--resume", "auto")).wait(0)
    same_run(probed[0], tmp_path / "killed")
    two.wait(0, 0)
    one, other = tensors_of(probed[0]), tensors_of(tmp_path / "two")
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-5, msg=key)
    assert result_of(tmp_path / "two")["top1"] == result_of(probed[0])["top1"]


def test_the_whole_net_is_trained_at_its_width(
    us3l: Us3l, line: tuple[object, ...], probed: tuple[Path, Result], digits_run: tuple[Path, Result], tmp_path: Path
) -> None:
    """From a probe's classifier, if asked for; what does not run at the width stays, but for weight decay."""
    start = (*line[:-1], f"MODEL.PRETRAINED={probed[0] / CHECKPOINT}", WHOLE[0], "TRAIN.LR_SCHEDULER.BASE_LR=1e-9")
    us3l(*start, "TRAIN.EPOCHS=1", "--output", tmp_path / "fresh")
    us3l(*start, "TRAIN.EPOCHS=1", "--output", tmp_path / "warm", "TRAIN.WARMUP_FC=True")
    head = tensors_of(probed[0])["fc.weight"]
    torch.testing.assert_close(tensors_of(tmp_path / "warm")["fc.weight"], head)
    assert not torch.allclose(tensors_of(tmp_path / "fresh")["fc.weight"], head)
    us3l(*line, *WHOLE, "--output", tmp_path / "trained")
    before = torch.load(digits_run[0] / CHECKPOINT, weights_only=True)["state_dict"]["encoder_q.layer1.0.conv1.weight"]
    after = tensors_of(tmp_path / "trained")["layer1.0.conv1.weight"]
    moved = (before != after).flatten(1).any(1)
    assert moved[:8].all() and not moved[8:].any()
    assert result_of(tmp_path / "trained")["protocol"] == "training"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("MODEL.OFA.CALIBRATE_BN=False",), "no batch-norm statistics of width 0.5"),
        (("MODEL.OFA.WIDTH_MULT=0.2",), "MODEL.OFA.WIDTH_MULT 0.2 was not trained, only 0.25 to 1"),
        (("MODEL.ARCH=s_cifar_resnet8_1x1",), "it is universal"),
        (("MODEL.ARCH=us_cifar_resnet14_1x1",), "it holds a cifar_resnet8_1x1"),
        (("TRAIN.LR_SCHEDULER.BASE_LR=0",), "BASE_LR"),
        (("--pretrained",), "--pretrained"),
        (("--val-split", 0.5), "--val-split"),
        (("--cache-features", "TRAIN.LINEAR_EVAL=False"), "--cache-features"),
        (("MODEL.PRETRAINED=nowhere",), "nowhere"),
        (("MODEL.PRETRAINED=",), "MODEL.PRETRAINED is empty"),
        (("MODEL.PRETRAINED=", "TRAIN.WARMUP_FC=True"), "TRAIN.WARMUP_FC"),
        (("MODEL.OFA.CALIBRATION_PICTURES=1",), "CALIBRATION_PICTURES=1"),
    ],
)
def test_what_is_refused(
    us3l: Us3l, line: tuple[object, ...], tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    line = line[:-1] if any(str(part).startswith("MODEL.PRETRAINED") for part in more) else line
    error = us3l(*line, *more, "--output", tmp_path / "out", code=2).stderr
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_each_shipped_config_runs(us3l: Us3l, pretrained: str, tmp_path: Path, name: str) -> None:
    """On the digits, and with a small net of ours."""
    keys = (
        "MODEL.ARCH=us_cifar_resnet8_1x1",
        "MODEL.INPUTSHAPE=[8, 8]",
        "MODEL.NUM_CLASSES=10",
        "TRAIN.DATASET=digits",
    )
    keys += (
        "TRAIN.EPOCHS=1",
        "TRAIN.BATCH_SIZE=30",
        "TRAIN.GLOBAL_BATCH=30",
        "MODEL.OFA.CALIBRATE_BN=True",
        pretrained,
    )
    us3l("linear", "--config", f"configs/{name}", *LIMITS, *keys, "--output", tmp_path / "out")
    assert result_of(tmp_path / "out")["protocol"] == "probe" and result_of(tmp_path / "out")["steps"] == 2


def test_a_dry_run_tells_the_plan(us3l: Us3l, line: tuple[object, ...], tmp_path: Path) -> None:
    said = us3l(*line, "--dry-run", "--output", tmp_path / "out").stdout
    plan = dict(text.split(": ", 1) for text in said.splitlines())
    assert (plan["protocol"], plan["width"], plan["steps"]) == ("probe", "0.5", "6") and not list(tmp_path.iterdir())


def test_a_switchable_net_by_its_plain_name_and_resumed_without_its_file(
    us3l: Us3l, line: tuple[object, ...], listed_run: Path, tmp_path: Path
) -> None:
    line = (*line[:-1], "MODEL.ARCH=cifar_resnet8_1x1", "--output", tmp_path / "out")
    us3l(*line, f"MODEL.PRETRAINED={listed_run}", "--max-steps", 4)
    us3l(*line, "--resume", "auto")
    found: Any = load(tmp_path / "out" / CHECKPOINT)
    assert found.conv1.out_channels == 8 and found.fc.out_features == 10
    opened = open_pretrained(tmp_path / "out" / CHECKPOINT)
    assert (opened.net.kind, opened.widths) == ("switchable", (1.0, 0.5))


def test_widths_by_layer(us3l: Us3l, line: tuple[object, ...], config: Path, tmp_path: Path) -> None:
    """Evaluated, saved, loaded and exported at them; each was trained, and outputs that meet agree."""
    net: Any = open_pretrained(str(line[-1]).partition("=")[2]).model
    convs = {name: layer for name, layer in slimmable_layers(net).items() if isinstance(layer, SlimConv2d)}
    first = {name: 0.5 if name == "conv1" or "layer1" in name else 0.75 for name in convs}
    own = tmp_path / "own.yaml"
    own.write_text(f"BASE_CONFIG: {config}\nMODEL: {{OFA: {{WIDTH_BY_LAYER: {first}}}}}\n")
    line = ("linear", "--config", own, *line[3:])
    us3l(*line, "--output", tmp_path / "out")
    assert result_of(tmp_path / "out")["width"] == "0.5..0.75 by layer"
    found: Any = load(tmp_path / "out" / CHECKPOINT)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (found.conv1.out_channels, found.layer3[0].conv1.out_channels) == (8, 48)
    bare = tmp_path / "bare.yaml"
    bare.write_text("MODEL: {INPUTSHAPE: [8, 8]}\nTRAIN: {DATASET: digits}\n")
    given = f"MODEL.PRETRAINED={tmp_path / 'out' / CHECKPOINT}"
    us3l("calibrate", "--config", bare, given, "--limit-train", 40, "--output", tmp_path / "calibrated")
    opened = open_pretrained(tmp_path / "calibrated/checkpoint_width_by_layer.pth.tar")
    assert (opened.width, opened.widths) == (first, (0.25, 1.0)) and opened.has_statistics(first)
    scratch = (*line[:-1], *WHOLE, "TRAIN.EPOCHS=1")
    us3l(*scratch, "--output", tmp_path / "scratch")
    us3l("export", tmp_path / "scratch" / CHECKPOINT, "--output", tmp_path / "x", "--dry-run")
    us3l("export", tmp_path / "out" / CHECKPOINT, "--output", tmp_path / "net")
    torch.testing.assert_close(load(tmp_path / "net/subnetwork.safetensors")(x), found(x), rtol=1e-5, atol=1e-6)
    said = us3l(*line, "--output", tmp_path / "x", "MODEL.OFA.WIDTH_BY_LAYER={'conv1': 0.5}", code=2).stderr
    assert "leave out" in said and said.count("\n") == 1
    low = {**first, "layer3.0.conv1": 0.1}
    said = us3l(*line, "--output", tmp_path / "x", f"MODEL.OFA.WIDTH_BY_LAYER={low}", code=2).stderr
    assert "0.1 was not trained" in said and not (tmp_path / "x").exists()
