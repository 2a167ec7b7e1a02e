"""Observers against slow formulas; ranges per tensor and per channel, over several batches."""

import statistics

import pytest
import torch
from torch import Tensor

from lowbit.errors import InputError
from lowbit.quant import observers
from lowbit.quant.calibrate import calibrate_
from lowbit.quant.observers import OBSERVERS, ObservedActivation, Observer, ObserverConfig

BITS = torch.tensor(3)


def batches() -> list[Tensor]:
    return list(torch.randn(3, 4, 5, 6, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).unbind())


def slow_range(name: str, values: list[float]) -> tuple[float, float]:
    if name != "gaussian":
        return min(values), max(values)
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    return mean - 2 * deviation, mean + 2 * deviation


def slow_observer(name: str, seen: list[list[float]], momentum: float) -> tuple[float, float]:
    ranges = [slow_range(name, values) for values in seen]
    if name == "gaussian":
        return ranges[-1]
    if name == "minmax":
        return min(low for low, _ in ranges), max(high for _, high in ranges)
    low, high = ranges[0]
    for new_low, new_high in ranges[1:]:
        low, high = momentum * low + (1 - momentum) * new_low, momentum * high + (1 - momentum) * new_high
    return low, high


@pytest.mark.parametrize("name", ["minmax", "ema", "gaussian"])
@pytest.mark.parametrize("channels", [None, 5])
def test_equals_the_formula(name: str, channels: int | None) -> None:
    observer = Observer(ObserverConfig(name, 0.8), channels)
    for x in batches():
        observer(x, BITS)
    rows = [[x.flatten()] if channels is None else list(x.movedim(1, 0).flatten(1)) for x in batches()]
    slow = [
        slow_observer(name, [batch[row].tolist() for batch in rows], 0.8) for row in range(1 if channels is None else 5)
    ]
    assert observer.low.flatten().tolist() == pytest.approx([low for low, _ in slow], abs=1e-5)
    assert observer.high.flatten().tolist() == pytest.approx([high for _, high in slow], abs=1e-5)
    assert observer.seen == 3


def error(x: Tensor, low: float, high: float, bits: int) -> float:
    step = (high - low) / (2**bits - 1)
    zero = torch.floor(torch.tensor(-low / step + 0.5))
    codes = (torch.floor(x / step + 0.5) + zero).clamp(0, 2**bits - 1)
    return float(((codes - zero) * step - x).abs().pow(2.4).mean())


@pytest.mark.parametrize("bits", [2, 4])
def test_mse_errs_no_more_than_a_fine_search_nearby_and_keeps_the_first_batch(bits: int) -> None:
    x = torch.randn(4000, generator=torch.Generator().manual_seed(2))
    observer = Observer(ObserverConfig("mse"))
    observer(x, torch.tensor(bits))
    low, high = float(observer.low), float(observer.high)
    assert low / float(x.min()) == pytest.approx(high / float(x.max()), rel=1e-5), "both ends shrink alike"
    assert 0.2 <= low / float(x.min()) < 1
    ours = error(x.double(), low, high, bits)
    assert ours < error(x.double(), float(x.min()), float(x.max()), bits)
    nearby = [error(x.double(), low * (1 + d / 1000), high * (1 + d / 1000), bits) for d in range(-5, 6)]
    assert ours <= min(nearby) * 1.01
    observer(x * 10, torch.tensor(bits))
    assert float(observer.low) == low and observer.seen == 2


@pytest.mark.parametrize("channels", [None, 5])
def test_mse_in_parts_is_that_of_the_whole(monkeypatch: pytest.MonkeyPatch, channels: int | None) -> None:
    x = torch.randn(7, 5, 11, generator=torch.Generator().manual_seed(3))
    found = []
    for part in (1 << 19, 50):
        monkeypatch.setattr(observers, "PART", part)
        observer = Observer(ObserverConfig("mse"), channels)
        observer(x, BITS)
        found.append(torch.stack([observer.low, observer.high]))
    assert torch.equal(*found)


def test_reset_begins_anew() -> None:
    observer, (first, second, _) = Observer(ObserverConfig()), batches()
    observer(first * 10, BITS)
    observer.reset_()
    observer(second, BITS)
    assert observer.low == second.min() and observer.high == second.max()


def test_a_constant_batch_gives_an_empty_range_and_no_nan() -> None:
    for name in ("minmax", "ema", "gaussian", "mse"):
        observer = Observer(ObserverConfig(name))
        observer(torch.full((8,), 2.0), BITS)
        assert observer.low == observer.high and 0 < observer.low <= 2, name


@pytest.mark.parametrize("wrong", [{"name": "percentile"}, {"momentum": 1.0}])
def test_wrong_configurations(wrong: dict) -> None:
    with pytest.raises(InputError, match="allowed"):
        ObserverConfig(**wrong)


@pytest.mark.parametrize("name", OBSERVERS)
@pytest.mark.parametrize("channels", [None, 5])
def test_an_empty_batch_is_no_batch(name: str, channels: int | None) -> None:
    observer = Observer(ObserverConfig(name), channels)
    observer(torch.zeros(0, 5, 6), BITS)
    assert observer.seen == 0
    for x in (batches()[0], torch.zeros(0, 5, 6)):
        observer(x, BITS)
    once = Observer(ObserverConfig(name), channels)
    once(batches()[0], BITS)
    assert observer.seen == 1 and torch.equal(observer.low, once.low) and torch.equal(observer.high, once.high)


@pytest.mark.parametrize("name", OBSERVERS)
def test_a_single_value_has_a_range_without_nan(name: str) -> None:
    observer = Observer(ObserverConfig(name), 2)
    observer(torch.tensor([[1.0, -2.0]]), BITS)
    assert bool(observer.low.isfinite().all()) and observer.low[0] == observer.high[0] > 0 > observer.low[1]


@pytest.mark.parametrize("mode", ["float", "observe", "quantized"])
@pytest.mark.parametrize("function", ["relu", "gelu"])
def test_an_observed_activation_takes_an_empty_batch(mode: str, function: str) -> None:
    module = ObservedActivation(function, ObserverConfig())
    module.a_bits.fill_(3)
    calibrate_(module, [torch.zeros(0, 3), torch.linspace(-1, 1, 30).reshape(10, 3)])
    module.mode, x = mode, torch.zeros(0, 3, requires_grad=True)
    y = module(x)
    y.sum().backward()
    assert y.shape == (0, 3) and x.grad is not None and x.grad.shape == (0, 3) and module.observer.seen == 1
