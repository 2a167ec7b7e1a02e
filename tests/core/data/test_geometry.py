"""Geometries: the distribution of what they draw, and the same picture in a worker (PIL) as in a batch."""

import resource
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.hashing import Draws
from lowbit.data.resample import Interpolation
from lowbit.errors import InputError

N = 1500


def sizes(height: int, width: int, n: int = N) -> tuple[np.ndarray, np.ndarray]:
    return np.full(n, float(height)), np.full(n, float(width))


def photo(height: int, width: int) -> np.ndarray:
    """A smooth picture, so that PIL's rounding between its two passes is the only difference."""
    y, x = np.mgrid[:height, :width] / 7
    return np.stack([127 + 120 * np.sin(y + k) * np.cos(x - k) for k in range(3)], axis=-1).astype(np.uint8)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 80), (30, 300)])
def test_boxes_have_torchvisions_distribution(height: int, width: int) -> None:
    """Mean and spread of all four numbers; 30 x 300 makes it fall back to the largest central box."""
    scale, ratio = [0.2, 1.0], [3 / 4, 4 / 3]
    draws = Draws(np.arange(N), 0, 0)
    ours = RandomResizedCrop(32, (0.2, 1.0)).draw(draws, *sizes(height, width))
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([transforms.RandomResizedCrop.get_params(image, scale, ratio) for _ in range(N)])
    error = 5 * np.sqrt(2 / N) * (theirs.std(0) + 1e-9)
    assert np.all(np.abs(ours[:, :4].mean(0) - theirs.mean(0)) <= error)
    assert np.all(np.abs(ours[:, :4].std(0) - theirs.std(0)) <= error)
    assert np.all(ours[:, :2] >= 0) and np.all(ours[:, :2] + ours[:, 2:4] <= [height, width])
    assert np.all(ours[:, 2:4] == np.round(ours[:, 2:4])) and 0.45 < ours[:, 8].mean() < 0.55


def test_padded_crops_cover_all_corners_evenly() -> None:
    table = PaddedCrop(32, 4).draw(Draws(np.arange(N), 0, 0), *sizes(32, 32))
    for column in (0, 1):
        counts = np.bincount(table[:, column].astype(int), minlength=9)
        assert len(counts) == 9 and np.all(np.abs(counts - N / 9) < 5 * np.sqrt(N / 9))
    assert 0.45 < table[:, 2].mean() < 0.55 and set(table[:, 2]) == {0, 1}


GEOMETRIES = [
    PaddedCrop(40, 4),
    RandomResizedCrop(32, (0.2, 1.0)),
    RandomResizedCrop(24, (0.5, 1.0), interpolation="bicubic"),
    ResizedCenterCrop(36, 32),
    ResizedCenterCrop(36, 32, "bicubic", squash=True),
    ResizedCenterCrop(80, 64),
]


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda g: type(g).__name__)
def test_a_worker_shows_what_a_batch_shows(geometry: Geometry) -> None:
    """PIL rounds to bytes after each of its two passes: at most one level (1.5 of 255 with the final rounding)."""
    height, width, n = 50, 61, 12
    pixels = photo(height, width)
    table = geometry.draw(Draws(np.arange(n), 0, 0), *sizes(height, width, n))
    batch = torch.from_numpy(pixels).permute(2, 0, 1).expand(n, 3, height, width)
    ours = geometry.batch(batch, table, 255, torch.float32)
    ours = ours.float() / 255 if ours.dtype == torch.uint8 else ours
    assert ours.shape[2:] == geometry.size(height, width)
    for i in range(n):
        image = np.array(geometry.picture(Image.fromarray(pixels), table[i]))
        theirs = torch.from_numpy(image).permute(2, 0, 1) / 255
        assert (ours[i] - theirs).abs().max() <= 1.5 / 255


@pytest.mark.parametrize("geometry", GEOMETRIES[1:3], ids=["bilinear", "bicubic"])
def test_a_worker_shows_what_torchvision_shows(geometry: RandomResizedCrop) -> None:
    image = Image.fromarray(photo(50, 61))
    for row in geometry.draw(Draws(np.arange(8), 1, 0), *sizes(50, 61, 8)):
        mode = InterpolationMode(geometry.interpolation)
        expected = tv.resized_crop(image, *(int(v) for v in row[:4]), [geometry.side] * 2, mode)
        expected = tv.horizontal_flip(expected) if row[8] else expected
        assert np.array_equal(np.array(geometry.picture(image, row)), np.array(expected))


@pytest.mark.parametrize(("height", "width"), [(50, 61), (61, 50), (333, 500), (8, 8)])
def test_a_worker_shows_torchvisions_center_crop(height: int, width: int) -> None:
    geometry, image = ResizedCenterCrop(36, 32), Image.fromarray(photo(height, width))
    (row,) = geometry.draw(Draws(np.arange(1), 0, 0), *sizes(height, width, 1))
    expected = tv.center_crop(tv.resize(image, [36]), [32])
    assert np.array_equal(np.array(geometry.picture(image, row)), np.array(expected))


def test_keep_keeps() -> None:
    x = torch.randint(256, (2, 3, 5, 6), dtype=torch.uint8)
    table = Keep().draw(Draws(np.arange(2), 0, 0), *sizes(5, 6, 2))
    assert torch.equal(Keep().batch(x, table, 255, torch.float32), x) and Keep().size(5, 6) == (5, 6)


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(InputError, match="smaller than the crop of 32"):
        PaddedCrop(32, 4).size(20, 40)
    with pytest.raises(InputError, match="resize to 32 or more"):
        ResizedCenterCrop(30, 32)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(50, 61), (61, 50), (333, 500), (8, 8), (3, 900), (900, 3), (20, 640)])
@pytest.mark.parametrize("squash", [False, True])
def test_a_window_is_that_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, interpolation: Interpolation, squash: bool
) -> None:
    geometry, image = ResizedCenterCrop(36, 32, interpolation, squash), Image.fromarray(photo(height, width))
    (row,) = geometry.draw(Draws(np.arange(1), 0, 0), *sizes(height, width, 1))
    whole = np.array(geometry.picture(image, row)).astype(int)
    monkeypatch.setattr("lowbit.data.geometry.WHOLE", 0)
    window = np.array(geometry.picture(image, row)).astype(int)
    assert window.shape == whole.shape
    assert np.abs(window - whole).max() <= 2 and np.abs(window - whole).mean() < 0.2  # each pass may round otherwise


@pytest.mark.parametrize("flip", [0.0, 1.0])
@pytest.mark.parametrize(("height", "width"), [(1, 30000), (30000, 1), (2, 10_000_000), (10_000_000, 3)])
def test_a_very_long_picture_takes_little_memory(height: int, width: int, flip: float) -> None:
    """1 x 30000 to 256 x 7,680,000 took 8 GB."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[height // 2 :, width // 2 :] = 255
    image = Image.fromarray(pixels)
    for geometry in (ResizedCenterCrop(256, 224), ResizedCenterCrop(256, 224, squash=True), RandomResizedCrop(224)):
        (row,) = geometry.draw(Draws(np.arange(1), 0, 0), *sizes(height, width, 1))
        row[8] = flip
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        shown = np.array(geometry.picture(image, row))
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000 and time.monotonic() - start < 5
        assert shown.shape == (224, 224, 3)
        if isinstance(geometry, ResizedCenterCrop):  # the middle, where black ends
            assert shown.max() - shown.min() > 220
            assert (shown[-1, 0, 0] > 128) == (flip == 1) or height > width
