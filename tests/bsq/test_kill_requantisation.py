"""Kill -9 before, in and after a re-quantisation of `bsq cifar_prune_STE`: the resumed run is the unbroken one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.checkpoint.read import read_checkpoint
from lowbit.metrics import read_metrics

NET = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", 160, "--limit-eval", 60, "-j", 0)
SGD = ("--train-batch", 64, "--epochs", 2, "--schedule", 2, "--lr", 0.1, "--wd", 1e-4)  # 3 steps an epoch
LINE = ("cifar_prune_STE", *NET, *SGD, "--Nbits", 8, "--decay", 20, "--L1", "--Prun_Int", 1, "--thre", 5)
END = 6
TIMES = {"seconds", "images_per_second"}  # of result.json


Run = Callable[..., str]


@pytest.fixture(scope="module")
def killer(processes: Any) -> Run:
    """Run a command line to the end, or until it is killed as it must be; what it says on stderr."""

    def run(*args: object, kill: tuple[str, int] | None = None) -> str:
        more = {} if kill is None else {"kill": kill}
        return processes.start(args, **more).wait(0 if kill is None else -9).said(stream="err")

    return run


@pytest.fixture(scope="module")
def unbroken(digits_run: Path, killer: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    killer(*LINE, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", folder)
    return folder


def tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """All tensors of a checkpoint by their place."""
    found: dict[str, Tensor] = {}

    def walk(value: Any, place: str) -> None:
        if isinstance(value, Tensor):
            found[place] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{place}.{key}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{place}[{number}]")

    state = read_checkpoint(folder / name)
    walk({key: state[key] for key in ("state_dict", "optimizer") if key in state}, name)
    return found


def check(unbroken: Path, run: Path, same_run: Callable[..., None]) -> None:
    """Equal: the last two checkpoints with their optimizers, `model_best`, lines of metrics, log.txt, results."""
    same_run(unbroken, run)
    assert {path.name for path in run.iterdir()} == {path.name for path in unbroken.iterdir()}
    for name in ("checkpoint.prev.pth.tar", "model_best.pth.tar"):
        a, b = tensors(unbroken, name), tensors(run, name)
        assert list(a) == list(b) and all(torch.equal(a[place], b[place]) for place in a), name
    assert any(".optimizer.planes" in place for place in tensors(run, "checkpoint.prev.pth.tar"))
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (unbroken, run))
    assert all(one[key] == other[key] for key in (one.keys() | other.keys()) - TIMES)


def test_the_run_that_is_killed_below_changes_widths(unbroken: Path) -> None:
    """Planes go at every re-quantisation, or the equalities below would say little."""
    lines = [line for line in read_metrics(unbroken / "metrics.jsonl") if line["event"] == "requantize"]
    bits = [sum(pair[0] for pair in line["bits"].values()) for line in lines]
    assert [line["step"] for line in lines] == [0, 3, END] and 64 > bits[0] > bits[1] > bits[2]


@pytest.mark.parametrize(
    ("kill", "every", "saved"),
    [
        (("epoch", 3), None, 3),  # just before a re-quantisation
        (("done", END), None, END),  # behind it, its state kept, the checkpoint still that of before
    ],
)
def test_kill_9_around_a_requantisation(
    kill: tuple[str, int],
    every: int | None,
    saved: int,
    digits_run: Path,
    unbroken: Path,
    killer: Run,
    same_run: Callable[..., None],
    tmp_path: Path,
) -> None:
    line = (*LINE, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    saves = () if every is None else ("--save-every", every)
    killer(*line, *saves, kill=kill)
    assert torch.load(tmp_path / "run/checkpoint.pth.tar", weights_only=True)["step"] == saved
    killer(*line, "--resume", "auto")
    check(unbroken, tmp_path / "run", same_run)


PLACES = ("epoch", "before", "rounded", "after", "kept", "done")


@pytest.mark.slow
@pytest.mark.parametrize("every", [None, 1, 2])
def test_kill_9_at_every_place(
    every: int | None,
    digits_run: Path,
    unbroken: Path,
    killer: Run,
    same_run: Callable[..., None],
    tmp_path: Path,
) -> None:
    """One run, killed at every place of all three re-quantisations and after every batch, resumed each time."""
    line = (*LINE, "--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run", "--resume", "auto")
    saves = () if every is None else ("--save-every", every)
    for done in range(END + 1):
        if done % 3 == 0:
            for place in PLACES:
                place = "end" if done == END and place == "epoch" else place
                killer(*line, *saves, kill=(place, done))
        if done < END:
            killer(*line, *saves, kill=("batch", done + 1))
    killer(*line)
    check(unbroken, tmp_path / "run", same_run)
