"""Nearest class mean, against a slow loop."""

import pytest
import torch

from lowbit.errors import InputError
from lowbit.evaluate.class_means import class_means_top1
from lowbit.evaluate.features import Features


def test_equals_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(60) % 3
    x = torch.randn(60, 4, generator=generator) + label[:, None]
    train, test = Features(x[:30], label[:30]), Features(x[30:], label[30:])
    right = 0
    for row, answer in zip(x[30:], label[30:], strict=True):
        distances = [(row - x[:30][label[:30] == k].mean(0)).norm().item() for k in range(3)]
        right += distances.index(min(distances)) == answer
    assert class_means_top1(train, test) == pytest.approx(100 * right / 30) and 40 < 100 * right / 30 < 100


def test_labels_are_needed() -> None:
    with pytest.raises(InputError, match="labelled"):
        class_means_top1(Features(torch.ones(2, 3), None), Features(torch.ones(2, 3), None))


def test_a_class_without_pictures_is_no_answer() -> None:
    features = Features(torch.eye(4), torch.tensor([0, 0, 2, 2]))
    assert class_means_top1(features, features) == 100
