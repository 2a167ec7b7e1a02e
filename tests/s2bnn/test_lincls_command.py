"""`s2bnn main_lincls` on the digits: the authors' protocol and SimSiam's, resuming, evaluating, what is refused."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import Result
from PIL import Image
from torch import Tensor, nn

from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.datasets import load_dataset
from lowbit.data.hashing import permutation
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import balanced_subset
from lowbit.data.recipe import Channels, plain
from lowbit.evaluate.classify import counts
from lowbit.evaluate.features import extract
from lowbit.evaluate.linear import linear_probe
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.quant.binary import step_of
from lowbit.train.process import make_accelerator
from s2bnn.cli import cli
from s2bnn.load import open_student
from s2bnn.optim import optimizer
from s2bnn.options import LinclsOptions

S2bnn = Callable[..., Result]
CHECKPOINT = "checkpoint.pth.tar"
LIMITS = ("--dataset", "digits", "--limit-train", 120, "--limit-eval", 60, "-b", 32, "-p", 2)


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def tensors_of(folder: Path, name: str = CHECKPOINT) -> dict[str, Tensor]:
    return torch.load(folder / name, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def pretrained(checkpoint: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of a pretraining at each step, `STEP.pth.tar`."""
    folder = tmp_path_factory.mktemp("pretrained")
    for step in range(3):
        torch.save(checkpoint(step), folder / f"{step}.pth.tar")
    return folder


@pytest.fixture(scope="module")
def line(pretrained: Path) -> tuple[object, ...]:
    """A command line without its folder: 2 epochs of 4 steps."""
    schedule = ("--epochs", 2, "--schedule", 1, "--lr", 0.5)
    return ("main_lincls", pretrained, *LIMITS, *schedule, "--pretrained", pretrained / "2.pth.tar")


@pytest.fixture(scope="module")
def probed(s2bnn: S2bnn, line: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("runs") / "probe"
    return folder, s2bnn(*line, "--output", folder)


def test_defaults_are_the_authors(golden: Callable[[str], Path]) -> None:
    theirs = json.loads((golden("s2bnn") / "defaults.json").read_text())["main_lincls.py"]
    context = cli.commands["main_lincls"].make_context("main_lincls", ["DATA"])
    ours = {param.name: param.get_default(context) for param in context.command.params} | context.params
    ours |= {"pretrained": ours["weights"] or "", "resume": ours["resume"] or "", "data": str(ours["folder"])}
    ours |= {"arch": "resnet50", "start_epoch": 0}  # accepted without effect
    ours["schedule"] = list(ours["schedule"])
    differing = {name for name, value in theirs.items() if ours[name] != value}
    assert differing == {"seed", "workers"} or differing == {"seed"}  # 4 workers, or the cores if fewer


def test_the_record_and_the_files(probed: tuple[Path, Result], pretrained: Path) -> None:
    folder, said = probed
    result, lines = result_of(folder), said.stdout.splitlines()
    assert [text.split("\t")[0] for text in lines if text.startswith("Epoch")] == [
        f"Epoch: [{e}][{s}/4]" for e in range(2) for s in (2, 4)
    ]
    assert lines[2] == "=> sanity check passed." and lines.count(lines[2]) == 1
    assert lines[-1] == f" * Acc@1 {result['top1']:.3f} Acc@5 {result['top5']:.3f}"
    facts = {"student": "cifar_resnet8_1x1", "step": 2, "global_batch": 32, "steps": 8, "features": "computed"}
    assert facts.items() <= result.items() and result["best"]["top1"] >= result["top1"]
    names = {
        "checkpoint.prev.pth.tar",
        "model_best.pth.tar",
        "metrics.jsonl",
        "train.log",
        "result.json",
        "config.json",
    }
    assert {path.name for path in folder.iterdir()} - {".lock"} == {*names, CHECKPOINT}
    trained, before = tensors_of(folder), open_student(pretrained / "2.pth.tar").model.state_dict()
    assert all(torch.equal(trained[key], value) for key, value in before.items())
    assert {key for key in trained if key not in before} == {"fc.weight", "fc.bias"}
    rates = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"]["main"] if isinstance(line["lr"], dict) else line["lr"] for line in rates
            if line["event"] == "step"] == pytest.approx([0.5, 0.5, 0.05, 0.05])  # fmt: skip


def test_the_classifier_is_evaluated_again(s2bnn: S2bnn, probed: tuple[Path, Result], tmp_path: Path) -> None:
    net: Any = load(probed[0] / CHECKPOINT)
    assert step_of(net) == 2 and net.pretrained_cfg["label_names"] == tuple("0123456789")
    test = load_dataset("digits", Path(), "test")
    test = test.subset(balanced_subset(test.labels, 60))
    shown = plain(Channels((0.5,) * 3, (0.2,) * 3))  # as the pretrained file says
    x = next(iter(EvalLoader(test, shown, batch_size=60)))
    assert x.label is not None
    first, five, loss, _ = counts(net(x.views[0]), x.label).tolist()
    result = result_of(probed[0])
    assert (first / 0.6, five / 0.6) == (pytest.approx(result["top1"]), pytest.approx(result["top5"]))
    assert loss / 60 == pytest.approx(result["loss"], rel=1e-6)
    again = ("main_lincls", "anywhere", "--dataset", "digits", "--limit-eval", 60, "-e", "--resume")
    said = s2bnn(*again, probed[0] / CHECKPOINT, "--output", tmp_path / "e").stdout
    assert said == f" * Acc@1 {result['top1']:.3f} Acc@5 {result['top5']:.3f}\n"
    assert result_of(tmp_path / "e")["loss"] == pytest.approx(result["loss"], rel=1e-6)
    assert "it is of step 2, not 1" in s2bnn(*again, probed[0] / CHECKPOINT, "--step", 1, code=2).stderr


@pytest.mark.parametrize("more", [(), ("--cache-features",), ("--val-split", 0.2)])
def test_two_parts_equal_an_unbroken_run(
    s2bnn: S2bnn, line: Any, probed: Any, tmp_path: Path, same_run: Callable[[Path, Path], None], more: Any
) -> None:
    """The file may be left out by a run that goes on; another one is refused, as another rate is."""
    whole, said = (tmp_path / "whole", None) if more else probed
    said = said or s2bnn(*line, *more, "--output", whole)
    first = s2bnn(*line, *more, "--output", tmp_path / "parts", "--max-steps", 3)
    on = ("--output", tmp_path / "parts", "--resume", "auto")
    second = s2bnn(*line[:-2], *more, *on)
    same_run(whole, tmp_path / "parts")
    assert first.stdout + second.stdout == said.stdout
    other = line[-1].with_name("1.pth.tar")
    assert "--step 2" in s2bnn(*line[:-1], other, *more, *on, code=2).stderr
    assert "--lr 0.5" in s2bnn(*line, *more, *on, "--lr", 3, code=2).stderr


def test_the_recorded_training(golden: Callable[[str], Path]) -> None:
    """From the recorded features: the same batch four times."""
    with np.load(golden("s2bnn") / "lincls.npz") as arrays:
        recorded = {name.removeprefix("lincls."): torch.as_tensor(arrays[name]) for name in arrays.files}
    net: Any = create_model("cifar_resnet8_1x1", num_classes=1)
    net.fc = nn.Linear(1024, 1000)
    i = torch.arange(1024 * 1000, dtype=torch.float64).view(1000, 1024)
    position = list(json.loads((golden("s2bnn") / "lincls.json").read_text())["missing_keys"])
    assert position == ["fc.weight", "fc.bias"]
    fill = 0.01 * torch.sin(0.7 * i + 3 * PHASE[float(np.load(golden("s2bnn") / "reactnet.npz")["s"])] + 0.1)
    with torch.no_grad():
        net.fc.weight.copy_(fill)
        net.fc.bias.zero_()
    own = LinclsOptions(lr=0.1)
    objective = linear_probe(net, partial(optimizer, own, "sgd"))
    (sgd,) = objective.optimizers().values()
    losses, top5 = [], []
    for _ in range(4):
        logits = objective.student(recorded["features"])
        loss = F.cross_entropy(logits, recorded["targets"])
        losses.append(loss.item())
        top5.append(float(counts(logits.detach(), recorded["targets"])[1]) / 8 * 100)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    assert losses == pytest.approx(recorded["loss"].tolist(), rel=2e-6) and top5 == recorded["acc5"].tolist()
    assert float(net.fc.weight.detach().double().norm()) == pytest.approx(
        float(recorded["fc_weight_norm_after"]), rel=2e-6
    )
    assert torch.allclose(net.fc.bias, recorded["fc_bias_after"], rtol=6e-6, atol=1e-9)


PHASE = {1.9: 1.3, 2.6: 1.7}


def slow_lars(features: Tensor, label: Tensor, batches: Iterator[Tensor], rate: float) -> Tensor:
    """Three steps in double precision of SGD with momentum 0.9 on gradients scaled by 0.001 |w| / |g|, from zeros."""
    weight = torch.empty(10, features.shape[1]).normal_(0, 0.01, generator=torch.Generator().manual_seed(0)).double()
    bias, speed = torch.zeros(10).double(), [torch.zeros(weight.shape).double(), torch.zeros(10).double()]
    for batch in batches:
        x, p = features[batch], torch.softmax(features[batch] @ weight.T + bias, 1)
        error = (p - F.one_hot(label[batch], 10)) / len(batch)
        for number, (value, gradient) in enumerate(((weight, error.T @ x), (bias, error.sum(0)))):
            known = value.norm() > 0
            scaled = gradient * (0.001 * value.norm() / gradient.norm() if known else 1)
            speed[number] = 0.9 * speed[number] + scaled
            value -= rate * speed[number]
    return torch.cat([weight, bias[:, None]], 1)


def test_the_simsiam_protocol_is_a_slow_lars(s2bnn: S2bnn, pretrained: Path, tmp_path: Path) -> None:
    """A real-valued student; lr 0.1 for 256 pictures, a cosine that stays where it is inside an epoch."""
    line = (
        "main_lincls",
        "anywhere",
        *LIMITS,
        "--protocol",
        "simsiam",
        "--cache-features",
        "--lr",
        40,
        "--max-steps",
        3,
    )
    s2bnn(*line, "--pretrained", pretrained / "0.pth.tar", "--output", tmp_path)
    train = load_dataset("digits", Path(), "train")
    train = train.subset(balanced_subset(train.labels, 120))
    shown = plain(Channels((0.5,) * 3, (0.2,) * 3))
    net, seen = open_student(pretrained / "0.pth.tar").model, EvalLoader(train, shown, batch_size=120)
    features, label = extract(net, seen, make_accelerator("no", cpu=True))
    assert label is not None
    order = torch.from_numpy(permutation(120, 0, "order", 0)).split(32)
    expected = slow_lars(features.double(), label, iter(order[:3]), 40 * 32 / 256)
    trained = tensors_of(tmp_path)
    found = torch.cat([trained["fc.weight"], trained["fc.bias"][:, None]], 1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["epochs"], config["opt"], config["sched"], config["batch_size"]) == (90, "lars", "cosine", 32)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out as ImageNet's: 12 pictures of two classes."""
    folder = tmp_path_factory.mktemp("imagenet")
    for number in range(12):
        path = folder / ("train", "train", "val")[number % 3] / ("n01", "n02")[number % 2] / f"{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80 + number, 76), (20 * number, 99, 0)).save(path)
    return folder


AUTHORS = (
    "--lr 0.1 -j 24 --batch-size 256 --pretrained {file} --dist-url tcp://localhost:10001 "
    "--multiprocessing-distributed --world-size 1 --rank 0 {data}"
)
SHORT = "--epochs 1 --max-steps 2 -b 4 --image-size 64 --student"


@pytest.mark.heavy
def test_the_authors_line_with_their_file(s2bnn: S2bnn, imagenet: Path, tmp_path: Path) -> None:
    """A pretraining's file in their layout; the result, in their layout, is evaluated."""
    state = create_model("reactnet_a", num_classes=0).state_dict()
    file = tmp_path / "checkpoint_0199.pth.tar"
    theirs = {f"module.encoder_q.{key}": value for key, value in state.items()}
    theirs |= {f"module.encoder_q.feature.1.{key}.weight": torch.ones(2) for key in ("binary_pw", "bn2")}
    torch.save({"epoch": 200, "arch": "resnet50", "state_dict": theirs}, file)
    said = AUTHORS.format(file=file, data=imagenet).split()
    short = SHORT.split()[:-1]
    assert "--step" in s2bnn("main_lincls", *said, *short, "--output", tmp_path / "a", code=2).stderr
    s2bnn("main_lincls", *said, *short, "--output", tmp_path / "a", "--step", 2)
    result, trained = result_of(tmp_path / "a"), read_checkpoint(tmp_path / f"a/{CHECKPOINT}")["state_dict"]
    assert result["steps"] == 2 and result["finished"] and (tmp_path / "a/model_best.pth.tar").exists()
    torch.save({"arch": "resnet50", "state_dict": {f"module.{k}": v for k, v in trained.items()}}, tmp_path / "theirs")
    again = ("main_lincls", imagenet, "-e", "--resume", tmp_path / "theirs", "--image-size", 64, "-j", 0, "--step", 2)
    assert f"Acc@1 {result['top1']:.3f}" in s2bnn(*again).stdout


def test_the_authors_line_in_their_folder(
    s2bnn: S2bnn, imagenet: Path, pretrained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flags of their launcher are answered; what is written goes to where they write, the working folder."""
    monkeypatch.chdir(tmp_path)
    said = AUTHORS.format(file=pretrained / "2.pth.tar", data=imagenet)
    run = s2bnn("main_lincls", *said.split(), *SHORT.split(), "cifar_resnet8_1x1")
    assert "accelerate launch" in run.stderr
    assert result_of(tmp_path)["steps"] == 2 and (tmp_path / "model_best.pth.tar").exists()
    assert result_of(tmp_path)["train_transform"] == "training"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "--pretrained is missing"),
        (("--pretrained", "{}/none.pth.tar"), "none.pth.tar"),
        (("--pretrained", "{}/1.pth.tar", "--step", 2), "it is of step 1, not 2: leave out --step"),
        (("--pretrained", "{}/1.pth.tar", "--student", "resnet18"), "--student cifar_resnet8_1x1"),
        (("-e",), "--resume FILE"),
        (("-e", "--resume", "{}/1.pth.tar"), "without the last layer"),
        (("--timm-pretrained",), "give --student"),
        (("--timm-pretrained", "--pretrained", "{}/1.pth.tar"), "--pretrained has no meaning"),
    ],
)
def test_refused_before_anything_is_written(
    s2bnn: S2bnn, pretrained: Path, tmp_path: Path, more: Any, said: str
) -> None:
    given = [str(word).format(pretrained) for word in more]
    error = s2bnn("main_lincls", "anywhere", *LIMITS, *given, "--output", tmp_path / "out", code=2).stderr
    assert said in error and len(error.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_a_dry_run_writes_nothing(s2bnn: S2bnn, line: Any, tmp_path: Path) -> None:
    said = s2bnn(*line, "--dry-run", "--output", tmp_path / "out").stdout
    assert "steps: 8" in said and "step: 2" in said and not (tmp_path / "out").exists()
