"""`--target-compression`: what a re-quantisation would give, the strength, the last planes, the command."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from bsq.commands.requantised import RequantisedStates
from bsq.compression import size
from bsq.network import bit_layers, nbit_dict, prune_, requantize_, to_bits_
from bsq.planes import Planes, from_float, reconstruct, to_planes
from bsq.target import Aim, compression_now, meet_, shortened, widened
from lowbit.evaluate.classify import Scores
from lowbit.metrics import read_metrics
from lowbit.train.protocol import Clock

Bsq = Callable[..., Result]
LINE = ("cifar_prune_STE", "-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", 448, "--limit-eval", 60,
        "--train-batch", 64, "--epochs", 4, "--schedule", 3, "--wd", "1e-4", "--Nbits", 8, "--Prun_Int", 2)  # fmt: skip


def net(bits: int = 8, spread: float = 0.0) -> nn.Module:
    """A net in bits, its planes moved off 0 and 1 by up to `spread`."""
    torch.manual_seed(0)
    model = to_bits_(nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 90)), bits)
    for layer in bit_layers(model).values():
        for keys in layer.tensors:
            for plane in layer.planes(keys)[:2]:
                plane.data.add_(torch.rand_like(plane) * spread).clamp_(0, 2)
    return model


@pytest.mark.parametrize("ceiling", [3, 8])
@pytest.mark.parametrize("spread", [0.0, 0.3, 2.0, -2.0])
def test_now_is_what_requantisation_gives(spread: float, ceiling: int) -> None:
    model = net(3, spread)
    now = compression_now(bit_layers(model), lambda name: ceiling, lambda name: 1)
    assert now == size(prune_(requantize_(model, ceiling))).compression


def test_now_of_dead_layers() -> None:
    model = net()
    for name, layer in bit_layers(model).items():
        if name != "1":
            for plane in layer.planes()[:2]:
                plane.data.zero_()
    assert (
        compression_now(bit_layers(model), lambda name: 8, lambda name: 1)
        == size(prune_(requantize_(model))).compression
    )


def test_strength() -> None:
    aim = Aim(0.01, 4.0, 16.0)
    assert aim.strength(4.0, 0.0) == aim.strength(8.0, 0.3) == aim.strength(16.0, 0.6) == pytest.approx(0.01)
    assert aim.strength(4.0, 0.3) == pytest.approx(0.01 * 2.718281828**6)  # half the path behind: GAIN / 2
    assert aim.strength(16.0, 0.3) == pytest.approx(0.01 / 2.718281828**6)
    assert aim.strength(16.0, 1.0) == aim.strength(16.0, 0.6)  # the path is flat from there


def test_shortened_and_widened() -> None:
    given = from_float(torch.tensor([7.0, -6.0, 3.0, 1.0, 0.0]), 3)
    fewer = shortened(given)
    assert fewer.bits == 2 and reconstruct(*fewer).tolist() == pytest.approx([6.0, -6.0, 4.0, 0.0, 0.0])  # 3.5 and 0.5
    even = shortened(Planes(*to_planes(torch.tensor([4, 0]), 3, torch.ones(1)), torch.tensor(7.0)))
    assert even.bits == 1  # empty planes go too
    more = widened(given)
    assert more.bits == 4 and torch.allclose(reconstruct(*more), reconstruct(*given), rtol=0, atol=7 / 15 / 2)


@pytest.mark.parametrize("target", [4.5, 6.0, 10.0, 20.0, 31.0])
@pytest.mark.parametrize("bits", [1, 4, 8])
def test_meets(bits: int, target: float) -> None:
    model = net(bits)
    moves = meet_(bit_layers(model), target, lambda name: 1, lambda name: 8)
    assert moves and size(model).compression == pytest.approx(target, rel=0.05)
    widths = nbit_dict(model)
    assert all(1 <= b <= 8 for pair in widths.values() for b in pair[: 1 + (pair[1] > 0)])
    before = nbit_dict(prune_(model))
    assert before == widths  # no empty plane is counted
    assert meet_(bit_layers(model), target, lambda name: 1, lambda name: 8) == 0


def test_meets_within_floor_and_ceiling() -> None:
    model = net(4)
    meet_(bit_layers(model), 30.0, lambda name: 3 if name == "1" else 1, lambda name: 8)
    assert {name: pair[0] for name, pair in nbit_dict(model).items()} == {"0": 1, "1": 3, "3": 1}
    meet_(bit_layers(model), 1.1, lambda name: 1, lambda name: 5 if name == "1" else 2)
    assert {name: pair[0] for name, pair in nbit_dict(model).items()} == {"0": 2, "1": 5, "3": 2}


@pytest.mark.parametrize(("target", "best"), [(None, 2), (6.4, 5), (20.0, 2)])
def test_the_best_state_meets_the_target_if_any_does(target: float | None, best: int, tmp_path: Path) -> None:
    """Not one that overshot it early and was more accurate, or a later one of lower compression."""
    states = RequantisedStates(SimpleNamespace(), {}, target)  # type: ignore[arg-type]
    folder: Any = SimpleNamespace(path=tmp_path, best=tmp_path / "model_best.pth.tar")
    for done, (bits, top1) in enumerate([(2, 80.0), (5, 70.0), (5, 60.0), (8, 90.0)]):
        clock = Clock(0, done, 4, 0, 1, 0, done=done)
        states._keep(folder, clock, net(bits), Scores(top1, 100.0, 1.0, 1, 1.0))
    assert torch.load(folder.best)["acc"] == {2: 80.0, 5: 70.0}[best]


@pytest.mark.parametrize("target", [6, 10])
def test_the_command_meets_it(target: int, digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    run, start = tmp_path / "run", ("--model", digits_run / "bits8/checkpoint.pth.tar")
    bsq(*LINE, *start, "-c", run, "--target-compression", target)
    lines = [line for line in read_metrics(run / "metrics.jsonl") if line["event"] == "requantize"]
    assert lines[-1]["compression"] == pytest.approx(target, rel=0.05)
    assert torch.load(run / "model_best.pth.tar")["compression"] == pytest.approx(target, rel=0.05)
    found, alphas = ([line[key] for line in lines] for key in ("compression_found", "alpha"))
    assert alphas[0] == 0.01 and max(alphas) > 0.1 and found[-1] > 4.2  # the lasso did its part
    finetune = ("cifar_finetune", *LINE[1:15], "--model", run / "checkpoint.pth.tar", "--evaluate")
    assert f"{lines[-1]['compression']:.2f} X" in bsq(*finetune).stdout


def test_a_miss_is_told(digits_run: Path, bsq: Bsq, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """So strong a lasso that every layer dies at once; its records hold infinities."""
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    bsq(*LINE, *start, "--target-compression", 6, "--decay", 1e6)
    assert "--target-compression 6 was not met" in caplog.text
    assert (tmp_path / "run/log.txt").read_text().splitlines()[-1].split("\t")[6] == "inf"


def test_in_two_parts(digits_run: Path, bsq: Bsq, same_run: Callable[..., None], tmp_path: Path) -> None:
    """Stopped inside an epoch and at an epoch's end: the strength goes on where it was."""
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "--target-compression", 8)
    bsq(*LINE, *start, "--max-steps", 19, "-c", tmp_path / "whole")
    for steps in (9, 14, 19):  # the last without --model: the path begins where the checkpoint says
        given = start if steps < 19 else start[2:]
        bsq(*LINE, *given, "--max-steps", steps, "-c", tmp_path / "parts", "--resume", "auto")
    same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("3.9",), "starts at 4.00"),
        (("20", "--min-bits", "4"), "has 8.00 with every layer at its floor"),
        (("6", "--decay", "0"), "--decay"),
        (("40",), "--target-compression"),
        (("nan",), "nan"),
    ],
)
def test_refuses(args: tuple[str, ...], names: str, digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    start = ("--model", digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "run")
    said = bsq(*LINE, *start, "--target-compression", *args, code=2).stderr
    assert names in said and said.count("\n") == 1 and not (tmp_path / "run").exists()
