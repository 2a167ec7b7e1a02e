"""Figures of a classifier: against a slow count, ragged batches, double precision, a stop in the middle."""

import math
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError, Stopped
from lowbit.evaluate.classify import classify, counts, evaluating
from lowbit.train import signals


class Fixed:
    """Batches cut from tensors; calls `during` before each."""

    def __init__(self, x: Tensor, y: Tensor, size: int, during: object = None) -> None:
        self.parts = list(zip(x.split(size), y.split(size), strict=True))
        self.during = during

    def __len__(self) -> int:
        return len(self.parts)

    def __iter__(self) -> Iterator[Batch]:
        for x, y in self.parts:
            if callable(self.during):
                self.during()
            yield Batch((x,), torch.arange(len(y)), y)


def slow(logits: list[list[float]], labels: list[int]) -> tuple[float, float, float]:
    top1 = top5 = loss = 0.0
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(len(row)), key=lambda i: -row[i])
        top1 += order[0] == label
        top5 += label in order[:5]
        loss += math.log(sum(math.exp(v) for v in row)) - row[label]
    n = len(labels)
    return 100 * top1 / n, 100 * top5 / n, loss / n


@pytest.mark.parametrize("size", [1, 7, 23, 100])
@pytest.mark.parametrize("classes", [3, 10])
def test_equals_a_slow_count_for_every_split(accelerator: Accelerator, size: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    x = torch.randn(23, classes, generator=generator, dtype=torch.float64)
    y = torch.randint(classes, (23,), generator=generator)
    scores = classify(nn.Identity(), Fixed(x, y, size), accelerator)
    assert scores[:3] == pytest.approx(slow(x.tolist(), y.tolist()), abs=1e-12)
    assert scores.pictures == 23


def test_counts_are_float64() -> None:
    assert counts(torch.randn(2, 3), torch.tensor([0, 1])).dtype == torch.float64


def test_modes_are_put_back_one_by_one() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model[0].training
        raise ZeroDivisionError
    assert [m.training for m in model.modules()] == [True, True, False]


def test_a_stop_is_seen_inside(accelerator: Accelerator) -> None:
    model = nn.Linear(4, 3)
    batches = Fixed(torch.randn(9, 4), torch.zeros(9, dtype=torch.long), 2, signals.request_stop)
    try:
        with pytest.raises(Stopped):
            classify(model, batches, accelerator)
    finally:
        signals.clear()
    assert model.training


def test_nothing_to_evaluate_is_an_error(accelerator: Accelerator) -> None:
    batches = Fixed(torch.randn(0, 4), torch.zeros(0, dtype=torch.long), 2)
    with pytest.raises(InputError, match="no labelled picture"):
        classify(nn.Identity(), batches, accelerator)
