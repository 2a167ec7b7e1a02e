"""Recorded numbers of BSQ's original program, a comparison relative to an array's maximum, and runs on the digits."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from in_process import runner
from recorded import Recorded as Arrays
from torch import Tensor, nn
from torchvision.datasets import CIFAR10

from bsq.activation import quantize_bsq_activations_
from bsq.cli import cli
from bsq.network import to_bits_
from lowbit.metrics import read_metrics
from lowbit.models.create import create_model


class Recorded(Arrays):
    """One set of recorded arrays: `rec["ops"]["bits.w"]` is a tensor; widths and settings are read from names."""

    def cases(self, file: str, pattern: str) -> list[str]:
        """The distinct beginnings of names that match `pattern`, in file order; never empty."""
        found = [m.group(0) for m in map(re.compile(pattern).match, self[file]) if m]
        assert found, f"{file} holds no {pattern}"
        return list(dict.fromkeys(found))


@pytest.fixture(scope="session")
def recorded(golden: Callable[[str], Path]) -> Recorded:
    return Recorded(golden("bsq"))


@pytest.fixture(scope="session")
def near() -> Callable[..., None]:
    def compare(ours: Tensor, theirs: Tensor, what: str = "", tolerance: float = 2e-7) -> None:
        assert tuple(ours.shape) == tuple(theirs.shape), what
        theirs = theirs.to(ours.dtype)
        error = (ours.detach() - theirs).abs().max().item()
        limit = tolerance * max(theirs.abs().max().item(), 1e-30)
        assert error <= limit, f"{what}: {error / max(limit, 1e-30):.3g} times the tolerance"

    return compare


def _filled_net(recorded: Recorded) -> nn.Module:
    """The net filled by the formula of golden/README (m is stored)."""
    model, m = create_model("cifar_resnet20_1x1"), float(recorded["network"]["formula.m"])
    state = model.state_dict()
    for k, (key, _, dtype) in enumerate(recorded.json("keys")["float"]):
        old = state[key.removeprefix("module.")]
        wave = torch.sin(0.7 * torch.arange(old.numel(), dtype=torch.float64) + m * k + 0.1).reshape(old.shape)
        if "int" in dtype:
            new = torch.zeros_like(old)
        elif old.dim() > 1:
            new = (2 / (old.numel() / old.shape[0])) ** 0.5 * wave
        elif key.endswith(("bias", "running_mean")):
            new = 0.1 * wave
        else:
            new = 1 + 0.1 * wave
        old.copy_(new)
    return model


def formula_pictures(recorded: Recorded) -> tuple[Tensor, Tensor]:
    arrays = recorded["network"]
    labels = arrays["formula.labels"].long()
    i = torch.arange(len(labels) * 3072, dtype=torch.float64)
    x = torch.sin(float(arrays["formula.c"]) * i * i + float(arrays["formula.s"])).float()
    assert torch.allclose(x[:8], arrays["formula.x_first8"].float(), atol=1e-6)
    return x.reshape(-1, 3, 32, 32).double(), labels


def real_pictures(recorded: Recorded, root: Path, split: str) -> tuple[Tensor, Tensor]:
    facts = recorded.json("network")["pictures"]
    start, stop = facts[f"{split}_index_range"]
    data = CIFAR10(str(root), train=split == "train")
    raw = torch.as_tensor(data.data[start:stop]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(facts[f"normalise_{key}"]).reshape(3, 1, 1) for key in ("mean", "std"))
    x = (raw.float() / 255 - mean) / std
    means = recorded["network"][f"{split}_picture_means"]
    assert torch.allclose(x.mean((1, 2, 3)).double(), means.double(), atol=1e-5)
    labels = torch.tensor(data.targets[start:stop])
    assert torch.equal(labels, recorded["network"][f"{split}_labels"].long())
    return x.double(), labels


class Who:
    """One recorded network (`net` makes it anew) with its pictures for evaluation and training."""

    def __init__(self, name: str, net: Callable[[], nn.Module], test: Any, train: Any) -> None:
        self.name, self.net, self.test, self.train = name, net, test, train

    def converted(self, act: int, bits: int | None = 8, widths: Any = None) -> nn.Module:
        """Converted in float32, then cast."""
        net = quantize_bsq_activations_(self.net(), act)
        if bits is not None:
            to_bits_(net, bits, widths=widths)
        return net.double().eval()


@pytest.fixture(scope="session", params=["formula", pytest.param("authors", marks=pytest.mark.data)])
def who(request: pytest.FixtureRequest, recorded: Recorded) -> Who:
    if request.param == "formula":
        pictures = formula_pictures(recorded)
        return Who("formula", lambda: _filled_net(recorded), pictures, pictures)
    root = request.getfixturevalue("cifar10_root")
    state = torch.load(request.getfixturevalue("authors_resnet20"), map_location="cpu", weights_only=True)["state_dict"]

    def net() -> nn.Module:
        model = create_model("cifar_resnet20_1x1")
        model.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
        return model

    return Who("authors", net, real_pictures(recorded, root, "test"), real_pictures(recorded, root, "train"))


@pytest.fixture(scope="session")
def filled_net(recorded: Recorded) -> Callable[[], nn.Module]:
    return lambda: _filled_net(recorded)


Bsq = Callable[..., Result]


@pytest.fixture(scope="session")
def bsq() -> Bsq:
    """Run one command line in this process: `bsq("convert", "-d", "digits")`, paths and numbers as they are."""
    return runner(cli)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, bsq: Bsq) -> Path:
    """A folder with runs on the digits: `float` (3 epochs of a small net), and its conversion `bits8` (act 4)."""
    folder = tmp_path_factory.mktemp("digits")
    common = ("-d", "digits", "-a", "cifar_resnet8_1x1")
    bsq(
        "train",
        *common,
        "--epochs",
        3,
        "--schedule",
        2,
        "--train-batch",
        64,
        "-c",
        folder / "float",
    )
    bsq("convert", *common, "--Nbits", 8, "--model", folder / "float/checkpoint.pth.tar", "-c", folder / "bits8")
    return folder


TIMES = {"seconds", "images_per_second", "run", "ranks", "lines"}  # what may differ between equal runs


def _compare(a: Any, b: Any, tolerance: float, where: str) -> None:
    if isinstance(a, Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        if tolerance and a.is_floating_point():
            assert torch.allclose(a, b, rtol=tolerance, atol=tolerance), f"{where}: {(a - b).abs().max()}"
        else:
            assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for name in a.keys() - TIMES:
            _compare(a[name], b[name], tolerance, f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            _compare(x, y, tolerance, f"{where}[{number}]")
    elif isinstance(a, float) and tolerance:
        assert a == pytest.approx(b, rel=tolerance, abs=tolerance), where
    else:
        assert a == b, where


@pytest.fixture(scope="session")
def same_run() -> Callable[..., None]:
    """Two run folders are equal, within a tolerance: checkpoint, lines of metrics, log.txt; times excluded."""

    def compare(a: Path, b: Path, tolerance: float = 0.0) -> None:
        x, y = (torch.load(folder / "checkpoint.pth.tar", weights_only=True) for folder in (a, b))
        _compare(x, y, tolerance, "checkpoint")
        _compare(*(read_metrics(folder / "metrics.jsonl") for folder in (a, b)), tolerance, "metrics")
        if not tolerance:
            assert (a / "log.txt").read_text() == (b / "log.txt").read_text()

    return compare
