"""Re-quantisation: growth, drops, saturation and dead layers by a slow formula; which state becomes `model_best`."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

import lowbit
from bsq import checkpoint, planes
from bsq.commands.requantised import RequantisedStates
from bsq.compression import size
from bsq.network import bit_layers, nbit_dict, prune_, requantize_, to_bits_
from bsq.planes import Planes
from lowbit.checkpoint.read import read_checkpoint
from lowbit.errors import InputError
from lowbit.evaluate.classify import Scores
from lowbit.metrics import read_metrics
from lowbit.models.create import create_model
from lowbit.train.folder import RunFolder
from lowbit.train.protocol import Clock

Bsq = Callable[..., Result]

# growth, drop, saturation


def spread(bits: int, high: float) -> Planes:
    """Real-valued planes as training leaves them: entries in [0, high]."""
    generator = torch.Generator().manual_seed(bits)
    p, n = (torch.rand(40, bits, dtype=torch.float64, generator=generator) * high for _ in range(2))
    return Planes(p, n, torch.tensor(0.7, dtype=torch.float64))


def slow(given: Planes, ceiling: int) -> tuple[list[int], list[float], int]:
    """Codes after rounding, the weights they stand for, and the width without empty planes: one weight at a time."""
    bits = given.bits
    found = []
    for p, n in zip(given.p.tolist(), given.n.tolist(), strict=True):
        found.append(round(sum((a - b) * 2 ** (bits - 1 - i) for i, (a, b) in enumerate(zip(p, n, strict=True)))))
    if bits >= ceiling:
        limit = 2**bits - 1
        found = [max(-limit, min(limit, code)) for code in found]
    step = given.scale.item() / (2**bits - 1)
    used = 0
    for code in found:
        used |= abs(code)
    width = used.bit_length() - (used & -used).bit_length() + 1 if used else 1
    return found, [code * step for code in found], width


@pytest.mark.parametrize("high", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("bits", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("ceiling", [2, 8, 16])
def test_requantising_and_dropping_by_the_formula(bits: int, ceiling: int, high: float) -> None:
    """Whatever grows, saturates or is dropped: the rounded weights stay, in the fewest planes that hold them."""
    given = spread(bits, high)
    codes, weights, width = slow(given, ceiling)
    grown = planes.requantize(given, max_bits=ceiling)
    assert grown.bits == bits + (max(map(abs, codes)) > 2**bits - 1) and grown.bits <= max(bits, ceiling)
    assert planes.codes(grown.p, grown.n).tolist() == codes
    left = planes.prune(grown)
    assert left.bits == width
    for found in (grown, left):
        assert planes.reconstruct(*found).tolist() == pytest.approx(weights, abs=1e-12)
        assert not (found.p * found.n).any() and {*found.p.unique().tolist(), *found.n.unique().tolist()} <= {0.0, 1.0}


def filled(bits: int, value: float, sign: int = 1) -> Planes:
    p, n = torch.full((2, bits), value), torch.zeros(2, bits)
    return Planes(p if sign > 0 else n, n if sign > 0 else p, torch.tensor(0.5))


@pytest.mark.parametrize("sign", [1, -1])
def test_the_growths_of_the_specification(sign: int) -> None:
    """N=3, all bits 2: N=4, ratio 15/7. N=1, p=2: bits [1, 0]. N=8 saturates to all ones."""
    four = planes.requantize(filled(3, 2.0, sign))
    assert four.bits == 4 and four.scale.item() == pytest.approx(0.5 * 15 / 7)
    assert planes.reconstruct(*four).tolist() == pytest.approx([sign * 0.5 * 14 / 7] * 2)
    two = planes.requantize(filled(1, 2.0, sign))
    assert (two.p if sign > 0 else two.n).tolist() == [[1, 0], [1, 0]] and two.scale.item() == pytest.approx(1.5)
    assert planes.reconstruct(*two).tolist() == pytest.approx([sign * 1.0] * 2)
    eight = planes.requantize(filled(8, 2.0, sign))
    assert eight.bits == 8 and bool((eight.p if sign > 0 else eight.n).all()) and eight.scale.item() == 0.5


def test_a_growth_and_a_drop_at_once() -> None:
    """N=3, p=[2, 2, 0]: 12 needs four planes, of which the two least significant are empty."""
    given = Planes(torch.tensor([[2.0, 2.0, 0.0]]), torch.zeros(1, 3), torch.tensor(0.7))
    left = planes.prune(planes.requantize(given))
    assert left.p.tolist() == [[1, 1]] and planes.reconstruct(*left).item() == pytest.approx(0.7 * 12 / 7)


@pytest.mark.parametrize("floor", [1, 2, 3])
def test_saturation_stops_at_the_floor(floor: int) -> None:
    """Every plane is below the threshold; weights of either sign that used a dropped one get the largest code left."""
    code = torch.tensor([8, -4, 2, -1] + [0] * 96)
    p, n = planes.to_planes(code, 4, torch.zeros(1))
    left = planes.prune(Planes(p, n, torch.tensor(1.5)), threshold=50, at_least=floor)
    top = 2**floor - 1
    assert left.bits == floor
    assert planes.codes(left.p, left.n)[:4].tolist() == [max(-top, min(top, c)) for c in (8, -4, 2, -1)]
    assert left.scale.item() == pytest.approx(1.5 * top / 15)


def test_a_dead_layer_has_0_bits_everywhere(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Emptied planes: 0 in the record, both rates, fine-tuning, the report, and a conversion by `--dict`."""
    state = read_checkpoint(digits_run / "bits8/checkpoint.pth.tar")
    for key in ("pweight", "nweight"):
        state["state_dict"][f"module.layer2.0.conv2.{key}"].zero_()
    torch.save(state, tmp_path / "dying.pth.tar")
    net = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--limit-train", 64, "--limit-eval", 20)
    short = (*net, "--train-batch", 64, "--epochs", 1, "--schedule", 1)
    bits = (*short, "--Prun_Int", 1, "--lr", 1e-6, "--model", tmp_path / "dying.pth.tar", "-c", tmp_path / "bits")
    said = bsq("cifar_prune_STE", *bits).stdout
    lines = [line for line in read_metrics(tmp_path / "bits/metrics.jsonl") if line["event"] == "requantize"]
    assert [line["bits"]["layer2.0.conv2"] for line in lines] == [[0, 0]] * 2
    found = json.loads((tmp_path / "bits/result.json").read_text())
    alive = {name: pair for name, pair in found["bits"].items() if name != "layer2.0.conv2"}
    assert {pair[0] for pair in alive.values()} == {8} and found["compression"] > 4.5
    start = ("--model", tmp_path / "bits/checkpoint.pth.tar")
    tuned = bsq("cifar_finetune", *short, *start, "-c", tmp_path / "tuned").stdout
    rate = f"]: {found['compression']:.2f} X"
    assert rate in said and rate in tuned
    assert json.loads((tmp_path / "tuned/result.json").read_text())["bits"] == found["bits"]
    bsq("report", *start, "--output", tmp_path / "report")
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["layers"]["layer2.0.conv2"]["bits"] == 0 and report["compression"] == found["compression"]
    model = ("--model", digits_run / "float/checkpoint.pth.tar", "--Nbits", 8)
    for source in ("bits", "tuned"):
        bsq("convert", *net, *model, "--dict", tmp_path / source / "checkpoint.pth.tar", "-c", tmp_path / f"{source}-c")
        assert json.loads((tmp_path / f"{source}-c/result.json").read_text())["bits"] == found["bits"]


@pytest.mark.parametrize("stated", [True, False])
def test_an_empty_plane_of_the_authors_has_0_bits(stated: bool, tmp_path: Path) -> None:
    """Their files count one for it: 1 in the Nbit_dict."""
    net = to_bits_(create_model("cifar_resnet8_1x1"), 3, widths={"fc": [0, 3], "conv1": [2, 0]})
    widths = {"Nbit_dict": {name: [max(w, 1), b] for name, (w, b) in nbit_dict(net).items()}} if stated else {}
    torch.save({"state_dict": checkpoint.state_dict(net), **widths}, tmp_path / "a.pth.tar")
    found = checkpoint.read(tmp_path / "a.pth.tar").widths
    assert found["fc"] == (0, 3) and found["conv1"] == (2, 0) and found["layer1.0.conv1"] == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float8_e5m2, torch.float16, torch.int64, torch.complex64], ids=str)
def test_planes_of_other_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    """Of 8 bits they cannot even be compared."""
    net = to_bits_(create_model("cifar_resnet8_1x1"), 3)
    state = checkpoint.state_dict(net)
    state["module.fc.pweight"] = state["module.fc.pweight"].to(dtype)
    head = checkpoint.header(net, arch="cifar_resnet8_1x1", classes=10)
    torch.save({**head, "state_dict": state}, tmp_path / "a.pth.tar")
    with pytest.raises(InputError, match=r"a\.pth\.tar"):
        lowbit.load(tmp_path / "a.pth.tar")


def test_a_dead_layer_may_grow_again() -> None:
    net = to_bits_(nn.Sequential(nn.Linear(3, 2)), 2, widths={"0": [0, 2]})
    layer = bit_layers(net)["0"]
    with torch.no_grad():
        layer.planes()[0].fill_(1.2)
        layer.planes()[2].fill_(0.3)
    prune_(requantize_(net))
    assert layer.bits() == 1 and layer.effective().tolist() == [[pytest.approx(0.3)] * 3] * 2


# model_best


class Kept:
    """States given to `RequantisedStates`: bits of two layers (one has 1/40 of the weights) and a made-up top-1."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder, locked=False)
        evaluator: Any = SimpleNamespace()
        self.states = RequantisedStates(evaluator, {})  # type: ignore[arg-type]
        self.compressions: list[float] = []

    def add(self, step: int, bits: Sequence[int], top1: float) -> None:
        net = nn.Sequential(*(nn.Linear(4, outputs, bias=False) for outputs in (156, 4)))
        net = to_bits_(net, 1, widths={str(i): [width, 0] for i, width in enumerate(bits)})
        self.compressions.append(size(net).compression)
        clock = Clock(0, step, 100, 0, 1, 0, done=step)
        self.states._keep(self.folder, clock, net, Scores(loss=0.0, top1=top1, top5=top1, pictures=1, seconds=0.0))

    def best(self) -> tuple[int, float]:
        state = read_checkpoint(self.folder.best)
        return state["step"], state["acc"]

    def waiting(self) -> list[str]:
        return sorted(path.name for path in self.folder.path.glob("requantized-*"))


SEQUENCES = {  # (bits of two layers, top-1) ..., and the one to keep
    "neither first nor last": ([((8, 8), 99.0), ((3, 3), 60.0), ((3, 3), 70.0), ((3, 3), 65.0)], 2),
    "the most compressed": ([((8, 8), 99.0), ((4, 4), 80.0), ((3, 3), 60.0), ((2, 2), 50.0)], 3),
    "the first of equals": ([((8, 8), 99.0), ((3, 3), 70.0), ((3, 3), 70.0), ((3, 3), 69.0)], 1),
    "the most compressed of equals": ([((8, 8), 9.0), ((3, 3), 7.0), ((3, 2), 7.0), ((3, 2), 6.0)], 2),
    "compression that falls again": ([((8, 8), 99.0), ((2, 2), 40.0), ((2, 2), 50.0), ((3, 3), 90.0)], 2),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_model_best(name: str, tmp_path: Path) -> None:
    states, expected = SEQUENCES[name]
    kept = Kept(tmp_path)
    for step, (bits, top1) in enumerate(states):
        kept.add(step, bits, top1)
    assert kept.best() == (expected, states[expected][1])


def test_model_best_is_the_rule_after_every_state(tmp_path: Path) -> None:
    """Drawn states whose compressions lie around one per cent apart; the files that wait are few."""
    draw = torch.Generator().manual_seed(1)
    chosen = set()
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        kept, top1s = Kept(tmp_path / str(number)), []
        for step in range(8):
            wider, top1 = (int(torch.randint(0, high, (), generator=draw)) for high in (4, 6))
            top1s.append(float(top1))
            kept.add(step, (4, 4 + wider), top1s[-1])
            near = [i for i, c in enumerate(kept.compressions) if c >= 0.99 * max(kept.compressions)]
            expected = max(near, key=lambda i: (top1s[i], kept.compressions[i], -i))
            assert kept.best() == (expected, top1s[expected])
            chosen.add("first" if expected == near[0] else "last" if expected == near[-1] else "between")
        assert len(kept.waiting()) < 6
    assert chosen == {"first", "last", "between"}


def test_states_of_a_run_that_was_killed_later_do_not_count(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    for step, top1 in ((0, 50.0), (5, 60.0), (9, 90.0)):
        kept.add(step, (3, 3), top1)
    assert kept.best() == (9, 90.0)
    kept.add(5, (3, 3), 60.0)  # resumed from before step 5
    assert kept.best() == (5, 60.0) and kept.waiting() == ["requantized-000000005.pth.tar"]
