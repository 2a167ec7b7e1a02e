"""A method in a folder of its own gets from core: dry run, training, resume, ranks, k-NN, loading, packed file, cost.

The package is `rotate/` beside this file, the model of core/README's "A method of your own".
"""

import json
import re
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import lowbit
from lowbit.checkpoint.write import write_checkpoint
from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.quant.layers import quantized_layers

ROOT, PACKAGE = Path(__file__).resolve().parents[3], Path(__file__).resolve().with_name("rotate")
NAME, ARCH, MOST = PACKAGE.name, "cifar_resnet8_1x1", 150  # lines
RUN = ("-d", "digits", "-a", ARCH, "--epochs", 3, "--train-batch", 12, "--limit-train", 100, "--limit-eval", 50)
STEPS = 27  # 9 an epoch, the last of 4 pictures
SIZE = (3, 8, 8)


class Method:
    """The package where nothing but sys.path knows it, and its runs."""

    def __init__(self, folder: Path, server: Any) -> None:
        self.folder, self.server = folder, server
        shutil.copytree(PACKAGE, folder / NAME, ignore=shutil.ignore_patterns("__pycache__"))
        facts = folder / f"lowbit_{NAME}-1.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: lowbit-{NAME}\nVersion: 1\n")
        (facts / "entry_points.txt").write_text(f"[lowbit.methods]\n{NAME} = {NAME}.load:from_checkpoint\n")
        self.whole = folder / "whole"
        self.unbroken = self.start(self.whole)
        self.one = self.start(folder / "one", dtype="float64")

    def start(self, output: Path, *args: object, **settings: Any) -> Any:
        line = ("train", *RUN, "-j", 0, "--output", output, *args)
        return self.server.start(line, call="command", package=str(self.folder), name=NAME, **settings)


@pytest.fixture(scope="module")
def method(toys: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Method]:
    """Imported in this process, too."""
    found = Method(tmp_path_factory.mktemp("method"), toys.server)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(found.folder)
        yield found
    for name in [name for name in sys.modules if name.partition(".")[0] == NAME]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def whole(method: Method) -> Path:
    """The folder of a run that nothing disturbed."""
    method.unbroken.wait(0)
    return method.whole


def test_it_is_small(method: Method) -> None:
    files = {path.name: len(path.read_text().splitlines()) for path in (method.folder / NAME).glob("*.py")}
    assert len(files) == 5 and sum(files.values()) <= MOST, files


def test_the_readme_shows_it() -> None:
    shown = (ROOT / "core/README.md").read_text().partition("## A method of your own")[2]
    (command,) = re.findall(r"```py\n(def train.*?)```", shown, re.S)
    assert (PACKAGE / "commands.py").read_text().endswith(command)
    assert f"a whole one in {sum(len(p.read_text().splitlines()) for p in PACKAGE.glob('*.py'))} lines" in shown


def test_dry_run(method: Method, tmp_path: Path) -> None:
    said = method.start(tmp_path / "run", "--dry-run").wait(0).said()
    plan = dict(line.split(": ") for line in said.splitlines())
    assert (plan["net"], plan["steps"], plan["steps per epoch"], plan["global_batch"]) == (ARCH, "27", "9", "12")
    assert float(plan["estimated seconds"]) >= 0 and not (tmp_path / "run").exists()


def test_files_of_a_run(whole: Path, method: Method) -> None:
    result, config = (json.loads((whole / f"{name}.json").read_text()) for name in ("result", "config"))
    assert result["finished"] and result["steps"] == STEPS and result["global_batch"] == 12
    assert (config["command"], config["arch"], config["seed"]) == ("train", ARCH, 0)
    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    figures = [line["knn_top1"] for line in lines if line["event"] == "eval"]
    assert len(figures) == 3 and figures[-1] == result["knn_top1"] > 20  # of ten classes, a tenth by chance
    losses = [line["loss"] for line in lines if line["event"] == "epoch"]
    assert losses[0] > losses[-1]
    assert method.unbroken.said().count("k-NN Acc@1") == 3
    again = method.start(whole).wait(2).said(stream="err")
    assert again.startswith("error: ") and again.count("\n") == 1 and "holds a run" in again


@pytest.mark.parametrize(("do", "at", "code"), [("SIGTERM", 14, 75), ("SIGKILL", 17, -signal.SIGKILL)])
def test_resumed_equals_unbroken(
    method: Method, whole: Path, same: Any, tmp_path: Path, do: str, at: int, code: int
) -> None:
    folder = tmp_path / "run"
    method.start(folder, "--save-every", 7, do=do, at=at).wait(code)
    assert torch.load(folder / "checkpoint.pth.tar")["step"] == 14
    method.start(folder, "--save-every", 7, "--resume", "auto").wait(0)
    same.resumed(whole, folder)


def test_what_is_refused_on_resume(method: Method, whole: Path, tmp_path: Path) -> None:
    for option, value in (("--lr", 0.2), ("--clip-grad", 1)):  # one of its own, one of every command's
        said = method.start(whole, option, value, "--resume", "auto").wait(2).said(stream="err")
        assert f"was made with {option}" in said
    state = torch.load(whole / "checkpoint.pth.tar")
    state["run"]["options"]["dataset"] = "letters"
    write_checkpoint(tmp_path / "other.pth.tar", state)
    other = method.start(tmp_path / "run", "--resume", tmp_path / "other.pth.tar").wait(2)
    assert "was made with dataset letters, this run has digits" in other.said(stream="err")


def test_two_ranks_equal_one(method: Method, same: Any) -> None:
    two = method.start(method.folder / "two", dtype="float64", world=2)
    method.one.wait(0)
    two.wait(0, 0)
    same.split(method.folder / "one", method.folder / "two", 1e-9)


def test_checkpoint_to_net(method: Method, whole: Path, tmp_path: Path) -> None:
    drawn = torch.random.get_rng_state()
    net = lowbit.load(whole / "checkpoint.pth.tar")
    assert torch.equal(drawn, torch.random.get_rng_state())
    trained = torch.load(whole / "rank0.pt")
    assert not net.training and all(torch.equal(v, trained[f"student.{k}"]) for k, v in net.state_dict().items())
    for number, change in enumerate(({"format": 2}, {"arch": "cifar_resnet14_1x1"}, {"state_dict": {}})):
        path = tmp_path / f"{number}.pth.tar"
        write_checkpoint(path, {**torch.load(whole / "checkpoint.pth.tar"), **change})
        with pytest.raises(InputError, match=path.name) as error:
            lowbit.load(path)
        assert "\n" not in str(error.value)


def test_packed(method: Method, whole: Path) -> None:
    net, packed = (lowbit.load(whole / name) for name in ("checkpoint.pth.tar", "packed.safetensors"))
    layers = dict(quantized_layers(net))
    assert len(layers) == 8
    for name, layer in layers.items():
        assert torch.equal(packed.get_submodule(name).weight, layer.weight_codes().values())
        assert torch.equal(packed.get_submodule(name).weight, layer.weight_quantizer(layer.weight))
    x = torch.rand(5, *SIZE)
    with torch.no_grad():
        assert torch.equal(net(x), packed(x))
    codes = sum(layer.weight.numel() for layer in layers.values()) / 4
    assert codes < (whole / "packed.safetensors").stat().st_size < codes + 4 * 2000 + 4000


def test_cost(method: Method, whole: Path) -> None:
    """MACs: places x outputs x inputs x 9. The stem and its ReLU are float, and so is what the pooling gives."""
    whole_net = cost(lowbit.load(whole / "checkpoint.pth.tar"), SIZE)
    assert {row.name: (row.macs, row.bits, row.input_bits) for row in whole_net.layers if row.macs} == {
        "conv1": (64 * 16 * 3 * 9, 32, None),
        "layer1.0.conv1": (64 * 16 * 16 * 9, 2, None),
        "layer1.0.conv2": (64 * 16 * 16 * 9, 2, 4),
        "layer2.0.conv1": (16 * 32 * 16 * 9, 2, 4),
        "layer2.0.conv2": (16 * 32 * 32 * 9, 2, 4),
        "layer2.0.downsample.0": (16 * 32 * 16, 2, 4),
        "layer3.0.conv1": (4 * 64 * 32 * 9, 2, 4),
        "layer3.0.conv2": (4 * 64 * 64 * 9, 2, 4),
        "layer3.0.downsample.0": (4 * 64 * 32, 2, 4),
        "fc": (64 * 4, 32, None),
    }
    assert whole_net.bops == sum(row.macs * row.bits * (row.input_bits or 32) for row in whole_net.layers)
