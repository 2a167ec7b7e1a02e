"""Recorded numbers of BSQ's original program, a comparison relative to an array's maximum, and runs on the digits."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from bsq.cli import cli


class Recorded:
    """One set of recorded arrays: `rec["ops"]["bits.w"]` is a tensor; widths and settings are read from names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cache: dict[str, dict[str, Tensor]] = {}

    def __getitem__(self, file: str) -> dict[str, Tensor]:
        if file not in self.cache:
            with np.load(self.folder / f"{file}.npz") as arrays:
                self.cache[file] = {name: torch.as_tensor(arrays[name]) for name in arrays.files}
        return self.cache[file]

    def json(self, file: str) -> Any:
        return json.loads((self.folder / f"{file}.json").read_text())

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


Bsq = Callable[..., Result]


@pytest.fixture(scope="session")
def bsq() -> Bsq:
    """Run one command line in this process: `bsq("convert", "-d", "digits")`, paths and numbers as they are."""

    def run(*args: object, code: int = 0, threads: int = 1) -> Result:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)  # the digits are too small for more
        try:
            result = CliRunner().invoke(cli, [str(arg) for arg in args])
        finally:
            torch.set_num_threads(before)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == code, result.stderr
        return result

    return run


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory, bsq: Bsq) -> Path:
    """A folder with runs on the digits: `float` (3 epochs of a small net), and its conversion `bits8` (act 4)."""
    folder = tmp_path_factory.mktemp("digits")
    common = ("-d", "digits", "-a", "cifar_resnet8_1x1")
    bsq("train", *common, "--epochs", 3, "--schedule", 2, "--train-batch", 64, "-c", folder / "float")
    bsq("convert", *common, "--Nbits", 8, "--model", folder / "float/checkpoint.pth.tar", "-c", folder / "bits8")
    return folder
