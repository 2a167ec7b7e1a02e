"""Shared by SSQL's tests: command lines on the digits, numbers of the original program, its fills and pictures."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from in_process import runner
from recorded import Recorded as Arrays
from torch import Tensor, nn

from ssql.cli import cli


class Recorded(Arrays):
    """One set of recorded numbers (their README is beside the specification): `recorded["quantizers"]["wq_w"]`."""

    @property
    def settings(self) -> dict[str, Any]:
        return self.json("settings")

    def pictures(self, which: str, size: int = 32) -> Tensor:
        """A batch by its name in settings.json ("view1", "calibration_pictures"), (n, 3, size, size)."""
        facts = self.settings[which]
        i = torch.arange(facts["n"] * 3 * size * size, dtype=torch.float64)
        return torch.sin(0.01 * i * i + facts["s"]).float().reshape(-1, 3, size, size)

    def fill(self, keys: Sequence[tuple[str, Sequence[int]]], how: str) -> Iterator[tuple[str, Tensor]]:
        """The values of a state dict, by its (key, shape) in the recorded order; `how` is "sin" or "mix"."""
        (a, b, c), phase = self.settings["mix_fill_constants"], self.settings["phase_per_key"]
        names = {key for key, _ in keys}
        for k, (key, shape) in enumerate(keys):
            i = torch.arange(int(np.prod(shape)))
            base = torch.sin(0.7 * i.double() + phase * k + 0.1)
            stem, _, last = key.rpartition(".")
            norm = f"{stem}.running_mean" in names
            if last in ("num_batches_tracked", "queue_ptr"):
                base = torch.zeros(len(i))
            elif last == "queue":
                base = nn.functional.normalize(base.reshape(*shape), dim=0)
            elif last == "weight" and not norm:
                if how == "mix":
                    base = 3**0.5 * (2 * ((a * i * i + b * i + c * k) % 10007).double() / 10006 - 1)
                base = (2 / (len(i) / shape[0])) ** 0.5 * base
            elif last in ("bias", "running_mean"):
                base = 0.1 * base
            else:
                base = 1 + 0.1 * base
            yield key, base.reshape(tuple(shape)).float()


@pytest.fixture(scope="session")
def recorded(golden: Callable[[str], Path]) -> Recorded:
    return Recorded(golden("ssql"))


@pytest.fixture(scope="session")
def filled() -> Callable[[nn.Module, Recorded, str], nn.Module]:
    """Fill a net's own state dict, whose order is the recorded one."""

    def fill(net: nn.Module, recorded: Recorded, how: str) -> nn.Module:
        state = net.state_dict()
        for key, value in recorded.fill([(key, value.shape) for key, value in state.items()], how):
            state[key].copy_(value)
        return net

    return fill


Ssql = Callable[..., Result]

SMALL = """\
BASE_CONFIG: configs/base/ssl.yaml
SEED: 3
MODEL:
  ARCH: cifar_resnet8_1x1
TRAIN:
  EPOCHS: 2
  DATASET: digits
  BATCH_SIZE: 32
  PRINT_FREQ: 2
  LR_SCHEDULER:
    BASE_LR: 0.05
  LOSS:
    CRITERION:
      NAME: ""
SSL:
  TYPE: SSQL_SimSiam
  SETTING: {DIM: 32, HIDDEN_DIM: 32, MOCO_K: 128, T: 0.2, MOMENTUM: 0.99}
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a small net on the digits: 2 epochs of batches of 32."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def ssql() -> Ssql:
    """Run one command line in this process: `ssql("ssl", "--config", PATH)`, paths and numbers as they are."""
    return runner(cli)


@pytest.fixture(scope="session")
def digits_line(small: Path) -> tuple[object, ...]:
    """A command line without its folder: 2 epochs of 4 steps."""
    return ("ssl", "--config", small, "--limit-train", 120, "--limit-eval", 60, "--probe-every", 1)


@pytest.fixture(scope="session")
def digits_run(
    tmp_path_factory: pytest.TempPathFactory, digits_line: tuple[object, ...], ssql: Ssql
) -> tuple[Path, Result]:
    """The folder of that run, finished, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    return folder, ssql(*digits_line, "--output", folder)
