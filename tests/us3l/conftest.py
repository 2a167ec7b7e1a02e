"""Shared by US3L's tests: numbers of the original program, its fills and pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from in_process import runner
from recorded import Recorded as Arrays
from torch import Tensor, nn

from us3l.cli import cli


class Recorded(Arrays):
    """One set of recorded numbers (their README is beside the specification): `recorded["layers"]["conv_tt/x"]`.

    Pictures and fills differ between the two sets; which one this is can be seen from the widths in macs.json.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        first = "0.25" in self.json("macs")["us_cifar_resnet18"]["widths"]
        self.phase_per_key, self.frequency, self.shift = (1.3, 0.010, 0.3) if first else (1.7, 0.013, 1.1)

    def pictures(self, shape: Sequence[int], shift: float) -> Tensor:
        """x[i] = sin(c i i + shift) over the whole batch, float64 then float32."""
        i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        return torch.sin(self.frequency * i * i + shift).float().reshape(tuple(shape))

    def fill(self, which: str) -> dict[str, Tensor]:
        """Values of the keys of a list of keys.json ("train_byol_dim64"), float32."""
        values = {}
        for k, (key, shape, kind) in enumerate(self.json("keys")[which]["keys"]):
            count = int(np.prod(shape))
            s = torch.sin(0.7 * torch.arange(count).double() + self.phase_per_key * k + 0.1)
            if kind in ("conv", "linear"):
                s = (2 / (count / shape[0])) ** 0.5 * s
            elif kind in ("bn_weight", "running_var"):
                s = 1 + 0.1 * s
            else:
                s = 0.1 * s
            values[key] = torch.tensor(0) if kind == "int" else s.reshape(tuple(shape)).float()
        return values


@pytest.fixture(scope="session")
def recorded(golden: Callable[[str], Path]) -> Recorded:
    return Recorded(golden("us3l"))


@pytest.fixture(scope="session")
def filled() -> Callable[[nn.Module, dict[str, Tensor]], nn.Module]:
    """Give a net the recorded values of its keys; those it has besides must be statistics of batch norm."""

    def fill(net: nn.Module, values: dict[str, Tensor]) -> nn.Module:
        missing, unexpected = net.load_state_dict(values, strict=False)
        assert not unexpected and all(key.rpartition(".")[2].startswith(("running", "num_")) for key in missing)
        return net

    return fill


Us3l = Callable[..., Result]

SMALL = """\
BASE_CONFIG: configs/base/digits.yaml
SEED: 3
TRAIN: {EPOCHS: 4, BATCH_SIZE: 8, GLOBAL_BATCH: 8, PRINT_FREQ: 1}
MODEL:
  OFA: {SAMPLE_SCHEDULER: A, CALIBRATION_PICTURES: 32}
SSL: {SETTING: {DIM: 16, HIDDEN_DIM: 16, MOCO_K: 64}}
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config of a small net on the digits: four epochs, a stage of schedule A each, of batches of 8."""
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def us3l() -> Us3l:
    """Run one command line in this process: `us3l("ssl", "--config", PATH)`, paths and numbers as they are."""
    return runner(cli)


@pytest.fixture(scope="session")
def digits_line(small: Path) -> tuple[object, ...]:
    """A command line without its folder: 4 epochs of 4 steps."""
    return ("ssl", "--config", small, "--limit-train", 30, "--limit-eval", 20, "--probe-every", 2)


@pytest.fixture(scope="session")
def digits_run(
    tmp_path_factory: pytest.TempPathFactory, digits_line: tuple[object, ...], us3l: Us3l
) -> tuple[Path, Result]:
    """The folder of that run, finished, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "out"
    return folder, us3l(*digits_line, "--output", folder)


@pytest.fixture(scope="session")
def listed_run(tmp_path_factory: pytest.TempPathFactory, small: Path, us3l: Us3l) -> Path:
    """The checkpoint of a switchable net of widths 1 and 0.5, an epoch old."""
    folder = tmp_path_factory.mktemp("runs") / "listed"
    keys = ("MODEL.ARCH=s_cifar_resnet8_1x1", "MODEL.OFA.USE_SLIMMABLE=True", "MODEL.OFA.WIDTH_MULT_LIST=[1.0, 0.5]")
    line = ("ssl", "--config", small, "--limit-train", 16, "--probe-every", 0, *keys, "TRAIN.EPOCHS=1")
    us3l(*line, "--output", folder)
    return folder / "checkpoint.pth.tar"
