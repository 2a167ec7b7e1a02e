"""Every augmentation operation equals `torchvision.transforms.v2.functional` for the same parameters."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lowbit.data.colour import JITTER, blend_, color_jitter, gaussian_blur, grayscale, hue_, jitter_table
from lowbit.data.geometry import Keep, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.hashing import Draws
from lowbit.data.recipe import CIFAR10, ColorJitter, RandomBlur, RandomGrayscale, Recipe
from lowbit.data.resample import Boxes, Interpolation, padded_crop, random_resized_crop, resized_crop

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
TV_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
BOTH = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


def close(ours: Tensor, theirs: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def pictures(n: int, height: int = 32, width: int = 32) -> Tensor:
    """Noise, and the cases where hue is delicate: black, white, grey, pure colours, two equal channels; n >= 12."""
    x = torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(n))
    x[0], x[1], x[2], x[3] = x[0].round(), x[1, :1], 0, 1
    for k, (a, b) in enumerate([(0, 1), (1, 2), (2, 0)]):
        x[4 + k, a] = x[4 + k, b]
    x[7], x[8] = (x[7] * 3).round() / 3, 0.5
    x[9, 1:], x[10] = 0, x[10] * 1e-6
    return x


def numbers(n: int, low: float, high: float) -> Tensor:
    """Both ends, the middle, and random numbers between."""
    u = torch.rand(n, generator=torch.Generator().manual_seed(99))
    u[torch.arange(n) % 4 == 0], u[torch.arange(n) % 4 == 1], u[-1] = 0, 1, 0.5
    return low + (high - low) * u


def every_pair(x: Tensor, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """Each picture with each parameter."""
    return x.repeat_interleave(len(parameter), 0), parameter.repeat(len(x))


def each(operation: Callable[..., Tensor], x: Tensor, parameter: Tensor) -> Tensor:
    return torch.stack([operation(picture, value.item()) for picture, value in zip(x, parameter, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", JITTER)
def test_jitter_operations(name: str, dtype: torch.dtype) -> None:
    low, high = (-0.5, 0.5) if name == "hue" else (0.0, 2.0)
    x, parameter = every_pair(pictures(14, 12, 9).to(dtype), numbers(8, low, high).to(dtype))
    ours, p = x.clone(), parameter.view(-1, 1, 1, 1)
    if name == "hue":
        hue_(ours, p[:, 0])
    else:
        blend_(ours, p, torch.full_like(p, name == "contrast"), torch.full_like(p, name == "saturation"))
    close(ours, each(TV_JITTER[JITTER.index(name)], x, parameter))


def test_grayscale() -> None:
    x = pictures(14)
    close(grayscale(x), tv.rgb_to_grayscale(x), 1e-6)
    all_grey = RandomGrayscale(p=1)
    ours = all_grey.batch(x.clone(), all_grey.draw(Draws(np.arange(14), 0, 0)))
    close(ours, tv.rgb_to_grayscale(x, num_output_channels=3), 1e-6)


@pytest.mark.parametrize("extreme", [False, True])
def test_jitter_applies_each_pictures_order_and_leaves_the_others_alone(extreme: bool) -> None:
    n = 72
    x, draw = pictures(n, 16, 16), np.random.default_rng(0)
    order = np.array([draw.permutation(4) for _ in range(n)])
    apply = draw.random(n) < 0.8
    factors = draw.random((n, 4)) + np.array([0.5, 0.5, 0.5, -0.5])
    if extreme:
        factors = draw.integers(0, 2, (n, 4)) * np.array([2, 2, 2, 1]) - np.array([0, 0, 0, 0.5])
    expected = x.clone()
    for i in np.flatnonzero(apply):
        for k in order[i]:
            expected[i] = TV_JITTER[k](expected[i], float(factors[i, k]))
    assert len({tuple(row) for row in order}) > 20 and 0 < apply.sum() < n
    close(color_jitter(x, jitter_table(factors, order, apply)), expected)
    assert torch.equal(color_jitter(x, jitter_table(factors, order, np.zeros(n, dtype=bool))), x)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_jitter_of_few_pictures(n: int) -> None:
    """Slices of no picture."""
    jitter, x = ColorJitter(p=1), pictures(12, 8, 8)[11 - n :]
    whole = jitter.draw(Draws(np.arange(len(x)), 0, 0))
    alone = torch.cat([jitter.batch(x[i : i + 1], whole[i : i + 1]) for i in range(len(x))])
    close(jitter.batch(x, whole), alone, 1e-6)


@pytest.mark.parametrize("side", [32, 9])
def test_blur(side: int) -> None:
    x, sigma = every_pair(pictures(12, side, side + 3), numbers(4, 0.1, 2.0))
    radius = 6
    expected = each(lambda picture, s: tv.gaussian_blur(picture, [2 * radius + 1] * 2, [s, s]), x, sigma)
    close(gaussian_blur(x, sigma, radius), expected)


def test_blur_with_drawn_deviations() -> None:
    x, blur = pictures(40, 16, 16), RandomBlur()
    table = blur.draw(Draws(np.arange(40), 0, 0))
    ours = blur.batch(x.clone(), table)
    for i, (apply, sigma) in enumerate(table):
        close(ours[i], tv.gaussian_blur(x[i], [13, 13], [sigma, sigma]) if apply else x[i])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 4])
def test_padded_crop_is_exact(dtype: torch.dtype, padding: int) -> None:
    n, draw = 40, torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 20, 24), generator=draw).to(dtype)
    ends = (20 + 2 * padding - 16, 24 + 2 * padding - 18)
    top, left = (torch.randint(0, end + 1, (n,), generator=draw) for end in ends)
    top[:8] = torch.tensor([0, 0, 1, 1]).repeat_interleave(2) * ends[0]  # the corners, as they are and mirrored
    left[:8] = torch.tensor([0, 1, 0, 1]).repeat_interleave(2) * ends[1]
    flip = torch.arange(n) % 2
    ours = padded_crop(x, top, left, flip, (16, 18), padding)
    for i in range(n):
        expected = tv.crop(tv.pad(x[i], [padding] * 4), int(top[i]), int(left[i]), 16, 18)
        assert torch.equal(ours[i], tv.horizontal_flip(expected) if flip[i] else expected)


def random_boxes(n: int, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """The columns of `Boxes`: the whole, single pixels at two corners, a single row, a single column, others."""
    draw = np.random.default_rng(height)
    h, w = draw.integers(1, height + 1, n), draw.integers(1, width + 1, n)
    h[:5], w[:5] = (height, 1, 1, 1, height), (width, 1, 1, width, 1)
    top, left = draw.integers(0, height - h + 1), draw.integers(0, width - w + 1)
    top[1:3], left[1:3] = (0, height - 1), (0, width - 1)
    rows, columns, zero = np.full(n, size[0]), np.full(n, size[1]), np.zeros(n)
    return np.stack([top, left, h, w, rows, columns, zero, zero, np.arange(n) % 2], axis=1).astype(np.float64)


def tv_resized_crop(x: Tensor, row: np.ndarray, interpolation: Interpolation) -> Tensor:
    top, left, h, w, rows, columns, *_, flip = (int(value) for value in row)
    shrinks = interpolation == "bicubic" or h > rows or w > columns
    options = {"interpolation": MODES[interpolation], "antialias": shrinks}
    out = tv.resized_crop(x, top, left, h, w, [rows, columns], **options).clamp(0, 1)  # bicubic overshoots
    return tv.horizontal_flip(out) if flip else out


@BOTH
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (50, 90), (8, 8)])
def test_resized_crop(interpolation: Interpolation, height: int, width: int) -> None:
    x, table = pictures(24, height, width), random_boxes(24, height, width, (32, 28))
    ours = resized_crop(x, Boxes(*torch.from_numpy(table.T).float()), (32, 28), interpolation)
    for i, row in enumerate(table):
        close(ours[i], tv_resized_crop(x[i], row, interpolation))


@BOTH
@pytest.mark.parametrize(("height", "width", "side"), [(32, 32, 32), (64, 64, 24), (20, 33, 28), (8, 8, 8)])
def test_random_resized_crop(interpolation: Interpolation, height: int, width: int, side: int) -> None:
    """Any integer box, and what the geometry draws, of floats and of bytes."""
    n, geometry = 30, RandomResizedCrop(side, interpolation=interpolation)
    drawn = geometry.draw(Draws(np.arange(n), 0, 0), np.full(n, float(height)), np.full(n, float(width)))
    for table in (random_boxes(n, height, width, (side, side)), drawn):
        x = pictures(n, height, width)
        ours = random_resized_crop(x, table, side, interpolation, 1, torch.float32)
        same = resized_crop(x, Boxes(*torch.from_numpy(table.T).float()), (side, side), interpolation)
        raw = x.mul(255).byte()
        of_bytes = geometry.batch(raw, table, 255, torch.float32)
        close(ours, same, 1e-6)
        for i, row in enumerate(table):
            close(ours[i], tv_resized_crop(x[i], row, interpolation))
            close(of_bytes[i], tv_resized_crop(raw[i] / 255, row, interpolation))


def test_crops_of_bytes_are_those_of_floats() -> None:
    x, table = torch.randint(0, 17, (8, 3, 32, 32), dtype=torch.uint8), random_boxes(8, 32, 32, (28, 28))
    boxes = Boxes(*torch.from_numpy(table.T))
    expected = resized_crop(x.double() / 16, boxes, (28, 28), "bilinear")
    close(resized_crop(x, boxes, (28, 28), "bilinear", white=16), expected, 1e-12)
    close(random_resized_crop(x, table, 28, "bilinear", 16, torch.float64), expected, 1e-12)


@BOTH
@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize(("height", "width"), [(50, 61), (61, 50), (33, 100), (32, 32), (8, 8)])
def test_resized_center_crop(interpolation: Interpolation, squash: bool, height: int, width: int) -> None:
    geometry, x = ResizedCenterCrop(36, 32, interpolation, squash), pictures(12, height, width)
    table = geometry.draw(Draws(np.arange(12), 0, 0), np.full(12, float(height)), np.full(12, float(width)))
    shrinks = interpolation == "bicubic" or (max if squash else min)(height, width) > 36
    options = {"interpolation": MODES[interpolation], "antialias": shrinks}
    expected = tv.center_crop(tv.resize(x, [36, 36] if squash else [36], **options), [32, 32]).clamp(0, 1)
    close(geometry.batch(x, table, 1, torch.float32), expected)


def test_normalisation() -> None:
    raw = pictures(14).mul(255).byte()
    out = torch.empty(1, 14, 3, 32, 32)
    Recipe(CIFAR10, Keep()).batch_(out, raw, 255, np.empty((14, 0)), [])
    expected = tv.normalize(tv.to_dtype(raw, torch.float32, scale=True), list(CIFAR10.mean), list(CIFAR10.std))
    close(out[0], expected)
