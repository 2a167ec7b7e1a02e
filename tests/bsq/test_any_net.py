"""The paper's ImageNet nets, and timm's others, through every command on a made-up folder of 4 classes.

Pictures are small: a float checkpoint says how those of its net are prepared, and so sets their size.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from timm.data import resolve_model_data_config
from torch import Tensor, nn

import lowbit
from bsq.bit_layer import BitLayer
from bsq.network import nbit_dict
from lowbit.checkpoint.read import read_checkpoint
from lowbit.metrics import read_metrics

Bsq = Callable[..., Result]
NETS = {  # side of the pictures, layers with weights, a pattern of some
    "resnet50": (64, 54, "*.conv2"),
    "inception_v3": (75, 95, "Mixed_6*"),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 classes of noise, each around its own colour."""
    root, noise = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for number, name in enumerate("abcd"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 100, (40, 50, 3)) + 50 * number
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return root


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Path]:
    """A folder whose files, some of hundreds of megabytes, do not outlive the test."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def plain_net(arch: str, side: int, path: Path) -> nn.Module:
    """timm's net of 4 classes with drawn weights, also as a float checkpoint that asks for pictures of that side."""
    torch.manual_seed(0)
    net = timm.create_model(arch, num_classes=4).eval()
    config = {**resolve_model_data_config(net), "input_size": (3, side, side)}
    lists = {key: list(value) if isinstance(value, tuple) else value for key, value in config.items()}
    torch.save({"package": "bsq", "arch": arch, "pictures": lists, "state_dict": net.state_dict()}, path)
    return net


def weights_of(net: nn.Module) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}


def rounded(w: Tensor, bits: int) -> Tensor:
    """s round(|w| (2^N - 1) / s) / (2^N - 1) sign(w), s = max|w|, half to even; in numpy."""
    x = w.detach().numpy()
    s, levels = np.abs(x).max(), np.float32(2**bits - 1)
    if s == 0:
        return torch.zeros_like(w)
    return torch.from_numpy(np.round(np.abs(x) * levels / s) * (s.astype(np.float64) / levels) * np.sign(x)).to(w.dtype)


def round_(net: nn.Module, bits: int) -> nn.Module:
    """Every weight and bias of a Conv2d or Linear by the formula, in place."""
    for layer in weights_of(net).values():
        for parameter in layer.parameters():
            parameter.data = rounded(parameter, bits)
    return net


@torch.no_grad()
def same_logits(one: nn.Module, other: nn.Module, side: int) -> None:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    ours, theirs = one.eval()(x), other.eval()(x)
    assert theirs.std() > 0 and (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def requantized(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if line["event"] == "requantize"]


def outgrow(source: Path, target: Path) -> Path:
    """The checkpoint with planes as training may leave them: all of the first output's weights have reached 2."""
    state = read_checkpoint(source)
    for key, planes in state["state_dict"].items():
        if key.endswith(".pweight"):
            planes[0] = 2.0
        elif key.endswith(".nweight"):
            planes[0] = 0.0
    torch.save(state, target)
    return target


class Chain:
    """The commands one after the other, in subfolders of `folder`; --act 0 and small batches throughout."""

    def __init__(self, arch: str, side: int, bits: int, pictures: Path, folder: Path, bsq: Bsq) -> None:
        self.side, self.bits, self.folder, self.bsq = side, bits, folder, bsq
        self.net = plain_net(arch, side, folder / "float.pth.tar")
        self.common = ("-d", "folder", "--data", pictures, "-a", arch, "-j", 0, "--test-batch", 4, "--act", 0)

    def file(self, name: str) -> Path:
        return self.folder / name / "checkpoint.pth.tar"

    def convert(self) -> None:
        """Every Conv2d and Linear is in bits then, and the logits are those of the rounded plain net."""
        model = ("--model", self.folder / "float.pth.tar", "-c", self.folder / "convert")
        self.bsq("convert", *self.common, "--Nbits", self.bits, *model)
        made = lowbit.load(self.file("convert"))
        layers = [name for name, module in made.named_modules() if isinstance(module, BitLayer)]
        assert layers == list(weights_of(self.net)) == list(nbit_dict(made)) and not weights_of(made)
        same_logits(made, round_(self.net, self.bits), self.side)

    def train(self, start: Path, name: str, batch: int, *more: object) -> list[dict[str, Any]]:
        """Re-quantisation and one step; where the batch is all 16 pictures, another re-quantisation. Their records."""
        sgd = ("--train-batch", batch, "--epochs", 1, "--schedule", 1, "--max-steps", 1)
        line = ("--L1", "--Prun_Int", 1, "--model", start, "-c", self.folder / name)
        self.bsq("cifar_prune_STE", *self.common, *sgd, *line, *more)
        return requantized(self.folder / name)

    def finish(self, start: Path) -> None:
        """Report, one step of fine-tuning, export; packed, in bits, as latents and as floats it is one net."""
        self.bsq("report", "--model", start, "--output", self.folder / "report")
        report = json.loads((self.folder / "report/report.json").read_text())
        found = torch.load(start, weights_only=True)["Nbit_dict"]
        assert list(report["layers"]) == list(weights_of(self.net)) and report["bits"] == found
        sgd = ("--train-batch", 16, "--epochs", 1, "--schedule", 1, "--max-steps", 1, "--lr", 1e-3)
        self.bsq("cifar_finetune", *self.common, *sgd, "--model", start, "-c", self.folder / "tuned")
        assert torch.load(self.file("tuned"), weights_only=True)["Nbit_dict"] == found
        line = ("export", "--model", self.folder / "tuned/best_bin.pth.tar", "--keep-batch-ranges")
        self.bsq(*line, "--output", self.folder / "packed")
        packed = lowbit.load(self.folder / "packed/packed.safetensors")
        for name in ("best_bin", "model_best", "best_float"):
            same_logits(packed, lowbit.load(self.folder / f"tuned/{name}.pth.tar"), self.side)

    def whole(self, conv2: str) -> None:
        """All of it; growth up to each layer's ceiling, drops down to each layer's floor."""
        self.convert()
        start = outgrow(self.file("convert"), self.folder / "grown.pth.tar")
        wider, ceilings = self.bits + 1, ("--max-bits", self.bits, "--max-bits", f"{conv2}={self.bits + 1}")
        for line in self.train(start, "bits", 16, *ceilings, "--lr", 1e-6):
            check_widths(line["bits"], conv2, wider, self.bits)
        floors = ("--thre", 100, "--min-bits", 2, "--min-bits", f"{conv2}=3", "--max-bits", wider)
        first, last = self.train(self.file("bits"), "fewer", 16, *floors, "--lr", 1e-3)
        check_widths(first["bits"], conv2, 3, 2)
        assert all(2 <= bits[0] <= wider for bits in last["bits"].values())
        self.finish(self.file("fewer"))


def check_widths(bits: dict[str, list[int]], pattern: str, those: int, others: int) -> None:
    """Weights of the layers that fit have `those` bits, of all others `others`."""
    assert {fnmatchcase(name, pattern) for name in bits} == {True, False}
    for name, (width, _) in bits.items():
        assert width == (those if fnmatchcase(name, pattern) else others), name


@pytest.mark.heavy
@pytest.mark.parametrize("arch", NETS)
def test_the_paper_s_imagenet_nets(arch: str, pictures: Path, room: Path, bsq: Bsq) -> None:
    """Conversion and a step behind a re-quantisation; 2 bits, since at 8 every file of a training has 3 GB."""
    side, layers, some = NETS[arch]
    chain = Chain(arch, side, 2, pictures, room, bsq)
    chain.convert()
    start = outgrow(chain.file("convert"), room / "grown.pth.tar")
    (line,) = chain.train(start, "bits", 8, "--max-bits", 2, "--max-bits", f"{some}=3")
    assert len(line["bits"]) == layers
    check_widths(line["bits"], some, 3, 2)
    assert torch.load(chain.file("bits"), weights_only=True)["step"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("arch", NETS)
def test_the_paper_s_imagenet_nets_through_every_command(arch: str, pictures: Path, room: Path, bsq: Bsq) -> None:
    side, _, some = NETS[arch]
    Chain(arch, side, 7, pictures, room, bsq).whole(some)


@pytest.mark.parametrize(
    ("arch", "side", "some"),
    [
        pytest.param("test_resnet", 64, "*conv2", marks=pytest.mark.heavy),
        pytest.param("test_convnext", 64, "*fc2", marks=pytest.mark.heavy),
        pytest.param("test_efficientnet", 64, "*conv_pwl", marks=pytest.mark.slow),
        pytest.param("test_vit", 160, "*fc2", marks=pytest.mark.slow),
    ],
)
def test_every_command(arch: str, side: int, some: str, pictures: Path, room: Path, bsq: Bsq) -> None:
    """Small relatives of timm's nets: depthwise and grouped convolutions, SAME padding, layer norm, attention."""
    Chain(arch, side, 7, pictures, room, bsq).whole(some)
