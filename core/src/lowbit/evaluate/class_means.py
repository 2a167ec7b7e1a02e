"""Nearest class mean: a probe of frozen features that needs no training and no choice."""

import torch

from lowbit.errors import InputError
from lowbit.evaluate.features import Features


def class_means_top1(train: Features, test: Features) -> float:
    """Percent of the test features that lie nearest to the mean of their own class, by Euclidean distance.

    Args:
        train: labelled; a class that has no picture is no answer.
        test: labelled.

    Raises:
        InputError: no labels.
    """
    if train.label is None or test.label is None:
        raise InputError("class means need labelled pictures")
    there = train.label.unique()
    means = torch.stack([train.x[train.label == k].mean(0) for k in there])
    nearest = there[torch.cdist(test.x, means).argmin(1)]
    return 100 * (nearest == test.label).double().mean().item()
