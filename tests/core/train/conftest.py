"""Toy runs in processes of their own, and how two of them are compared."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

TIMES = {"seconds", "images_per_second"}  # what may differ between equal runs


class ToyRun:
    """A started run."""

    def __init__(self, server: "ToyServer", folder: Path, pids: list[int]) -> None:
        self.server, self.folder, self.pids = server, folder, pids
        self.codes: list[int] | None = None

    def wait(self) -> list[int]:
        if self.codes is None:
            self.codes = self.server.ask({"wait": self.pids})["codes"]
        return self.codes

    def said(self, rank: int = 0) -> str:
        return Path(f"{self.folder}.{rank}.txt").read_text()


class ToyServer:
    """Starts toy runs (see toy_server.py)."""

    def __init__(self, base: Path, process: "subprocess.Popen[str]") -> None:
        self.base, self.process = base, process
        self.cache: dict[str, ToyRun] = {}

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, folder: Path, **settings: Any) -> ToyRun:
        return ToyRun(self, folder, self.ask({"folder": str(folder), **settings})["pids"])

    def finished(self, *started: ToyRun) -> Path:
        """Wait for runs to end; every process has to leave with 0. The first one's folder."""
        for run in started:
            codes = run.wait()
            assert set(codes) == {0}, f"{codes}: {run.said()[-3000:]}"
        return started[0].folder

    def run(self, folder: Path, **settings: Any) -> Path:
        """Run to the end."""
        return self.finished(self.start(folder, **settings))

    def begin(self, **settings: Any) -> None:
        """Start what `unbroken` will be asked for, so that it runs beside what the test does."""
        key = json.dumps(settings, sort_keys=True)
        if key not in self.cache:
            self.cache[key] = self.start(self.base / f"unbroken{len(self.cache)}", **settings)

    def unbroken(self, **settings: Any) -> Path:
        """The folder of a run that nothing disturbed, made once."""
        self.begin(**settings)
        return self.finished(self.cache[json.dumps(settings, sort_keys=True)])

    def files(self) -> str:
        """A folder for picture files."""
        folder = self.base / "pictures"
        folder.mkdir(exist_ok=True)
        return str(folder)


SERVER = pytest.StashKey["subprocess.Popen[str]"]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the server that is going to be used: its imports take 5 s, beside the tests before."""
    if not session.config.option.collectonly and any(
        "toys" in getattr(item, "fixturenames", ()) for item in session.items
    ):
        program = Path(__file__).resolve().parent / "toy_server.py"
        session.config.stash[SERVER] = subprocess.Popen(
            [sys.executable, "-W", "error::UserWarning:lowbit", str(program)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "USE_LIBUV": "0"},
        )  # fmt: skip


def pytest_unconfigure(config: pytest.Config) -> None:
    with config.stash.get(SERVER, contextlib.nullcontext()) as process:
        if process is not None:  # it ends with its stdin, and `with` waits for it
            process.stdin.close()


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> ToyServer:
    return ToyServer(tmp_path_factory.mktemp("toys"), pytestconfig.stash[SERVER])


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
