"""A map of features keeps groups together."""

import csv
from pathlib import Path

import numpy as np
import torch

from lowbit.data.pictures import MemoryPictures
from lowbit.evaluate.feature_map import tsne, write_map
from lowbit.evaluate.features import Features


def test_groups_stay_groups() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 1, 16)) * 9 + random.normal(size=(3, 20, 16))
    found = tsne(x.reshape(60, 16), seed=0).reshape(3, 20, 2)
    middles = found.mean(1, keepdims=True)
    within = np.linalg.norm(found - middles, axis=2).max()
    assert within < 0.5 * min(np.linalg.norm(middles[a] - middles[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


def test_a_picture_that_could_not_be_read_is_not_on_the_map(tmp_path: Path) -> None:
    """Its row is missing in the features; the others keep their classes."""
    label = torch.tensor([0, 0, 0, 1, 1, 1])
    pictures = MemoryPictures("toy", ["a", "b"], torch.zeros(6, 3, 2, 2, dtype=torch.uint8), label)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    write_map(Features(x[1:], label[1:]), pictures, 0, tmp_path)
    rows = list(csv.DictReader((tmp_path / "features.csv").read_text().splitlines()))
    assert [row["class"] for row in rows] == list("aabbb") and (tmp_path / "features.png").is_file()
