"""What the tests of evaluation share: the same work on one process and on two, and small sets of features."""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.evaluate.features import Features

FOLDER = pytest.StashKey[Path]()
WORKERS = pytest.StashKey["subprocess.Popen[bytes]"]()


@pytest.fixture
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start the processes that are going to be looked at: their imports take 5 s, beside the tests before."""
    wanted = any("ranks" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly:
        program = Path(__file__).resolve().parent / "rank_worker.py"
        folder = session.config._tmp_path_factory.mktemp("ranks")  # type: ignore[attr-defined]
        with (folder / "said.txt").open("wb") as said:
            session.config.stash[WORKERS] = subprocess.Popen(
                [sys.executable, str(program), str(folder)], stderr=said,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
        session.config.stash[FOLDER] = folder


def pytest_unconfigure(config: pytest.Config) -> None:
    with config.stash.get(WORKERS, contextlib.nullcontext()) as process:
        if process is not None and process.poll() is None:
            process.terminate()


@pytest.fixture(scope="session")
def ranks(pytestconfig: pytest.Config) -> dict[str, dict[str, Any]]:
    """What `rank_worker.py` found: "1-0" (one process), "2-0" and "2-1" (two)."""
    folder = pytestconfig.stash[FOLDER]
    assert pytestconfig.stash[WORKERS].wait(120) == 0, [p.read_text() for p in folder.glob("*.txt")]
    return {path.stem: torch.load(path) for path in folder.glob("*.pt")}


class Cut:
    """Batches of so many rows out of tensors, with their positions; calls `during` before each."""

    def __init__(self, x: Tensor, label: Tensor | None, size: int, during: Any = None) -> None:
        self.x, self.label, self.size, self.during = x, label, size, during

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[Batch]:
        for index in torch.arange(len(self.x)).split(self.size):
            if self.during is not None:
                self.during()
            yield Batch((self.x[index],), index, None if self.label is None else self.label[index])


@pytest.fixture(scope="session")
def cut() -> type[Cut]:
    return Cut


@pytest.fixture(scope="session")
def clouds() -> tuple[Features, Features]:
    """A training and a test set of overlapping clouds of 4 classes in 6 dimensions, float64."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(4, 6, generator=generator, dtype=torch.float64)

    def some(n: int) -> Features:
        label = torch.arange(n) % 4
        return Features(centres[label] + 0.8 * torch.randn(n, 6, generator=generator, dtype=torch.float64), label)

    return some(120), some(61)
