"""Toy runs in processes of their own, and how two of them are compared; an accelerator for runs in this one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from lowbit.train.process import make_accelerator

TIMES = {"seconds", "images_per_second"}  # what may differ between equal runs


class Toys:
    """Starts toy runs (see forked_toys.py)."""

    def __init__(self, base: Path, server: Any) -> None:
        self.base, self.server = base, server
        self.cache: dict[str, Any] = {}

    def start(self, folder: Path, **settings: Any) -> Any:
        return self.server.start(folder=str(folder), **settings)

    def run(self, folder: Path, **settings: Any) -> Path:
        """Run to the end; the folder."""
        self.start(folder, **settings).wait(*[0] * settings.get("world", 1))
        return folder

    def begin(self, **settings: Any) -> Any:
        """Start what `unbroken` will be asked for, so that it runs beside what the test does."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self.cache:
            folder = self.base / f"unbroken{len(self.cache)}"
            self.cache[key] = folder, self.start(folder, **settings)
        return self.cache[key]

    def unbroken(self, **settings: Any) -> Path:
        """The folder of a run that nothing disturbed, made once."""
        folder, started = self.begin(**settings)
        started.wait(*[0] * settings.get("world", 1))
        return folder

    def files(self) -> str:
        """A folder for picture files."""
        folder = self.base / "pictures"
        folder.mkdir(exist_ok=True)
        return str(folder)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, servers: Any) -> Toys:
    return Toys(tmp_path_factory.mktemp("toys"), servers[Path(__file__).resolve().with_name("forked_toys.py")])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def compare(a: Any, b: Any, tolerance: float, where: str) -> None:
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        if tolerance == 0 or not a.is_floating_point():
            assert torch.equal(a, b), where
        else:
            assert (a - b).abs().max().item() <= tolerance if a.numel() else True, where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for name in a:
            if name not in TIMES:
                compare(a[name], b[name], tolerance, f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b, strict=True)):
            compare(x, y, tolerance, f"{where}[{number}]")
    elif isinstance(a, float) and tolerance:
        assert abs(a - b) <= tolerance * max(1.0, abs(a)), f"{where}: {a} {b}"
    else:
        assert a == b, f"{where}: {a} {b}"


class Same:
    """Equality of two run folders, as the interface defines it."""

    @staticmethod
    def resumed(a: Path, b: Path) -> None:
        """Every tensor and value, of the checkpoint, the best one and the lines; times excluded."""
        for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
            compare(torch.load(a / name), torch.load(b / name), 0.0, name)
        assert lines_of(a) == lines_of(b)
        for rank in sorted(a.glob("rank*.pt")):
            compare(torch.load(rank), torch.load(b / rank.name), 0.0, rank.name)

    @staticmethod
    def split(one: Path, several: Path, tolerance: float) -> None:
        """Weights, optimizer state and lines within a tolerance; ranks hold equal weights."""
        x, y = torch.load(one / "checkpoint.pth.tar"), torch.load(several / "checkpoint.pth.tar")
        for name in ("state_dict", "optimizer", "epoch", "step"):
            compare(x[name], y[name], tolerance, name)
        compare(lines_of(one), lines_of(several), tolerance, "metrics")
        ranks = sorted(several.glob("rank*.pt"))
        assert ranks
        for rank in ranks[1:]:
            compare(torch.load(ranks[0]), torch.load(rank), 0.0, rank.name)


@pytest.fixture
def same() -> type[Same]:
    return Same


@pytest.fixture
def accelerator() -> Accelerator:
    return make_accelerator("no", cpu=True)
