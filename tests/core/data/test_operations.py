"""Every augmentation operation equals `torchvision.transforms.v2.functional` for the same parameters."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from lowbit.data.colour import (
    JITTER,
    brightness_,
    color_jitter,
    contrast_,
    gaussian_blur,
    grayscale,
    hue_,
    saturation_,
)
from lowbit.data.resample import Boxes, Interpolation, padded_crop, resized_crop

MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
TV_JITTER = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)


def pictures(n: int, height: int = 32, width: int = 32) -> Tensor:
    """Noise, and the cases where hue is delicate: black, white, grey, pure colours, two equal channels."""
    x = torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(n))
    x[0], x[1], x[2] = x[0].round(), x[1, :1], x[2]
    x[2, 1] = x[2, 0]
    return x


def numbers(n: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=torch.Generator().manual_seed(99))


def each(operation: Callable[..., Tensor], x: Tensor, parameter: Tensor) -> Tensor:
    return torch.stack([operation(picture, value.item()) for picture, value in zip(x, parameter, strict=True)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [
        (brightness_, tv.adjust_brightness, 0.0, 2.0),
        (contrast_, tv.adjust_contrast, 0.0, 2.0),
        (saturation_, tv.adjust_saturation, 0.0, 2.0),
        (hue_, tv.adjust_hue, -0.5, 0.5),
    ],
)
def test_colour(
    ours: Callable[[Tensor, Tensor], Tensor],
    theirs: Callable[..., Tensor],
    low: float,
    high: float,
    dtype: torch.dtype,
) -> None:
    x, parameter = pictures(16).to(dtype), numbers(16, low, high).to(dtype)
    torch.testing.assert_close(ours(x.clone(), parameter), each(theirs, x, parameter), rtol=0, atol=1e-5)


def test_grayscale() -> None:
    x = pictures(8)
    torch.testing.assert_close(grayscale(x), tv.rgb_to_grayscale(x), rtol=0, atol=1e-6)


def test_jitter_applies_each_pictures_order_and_leaves_the_others_alone() -> None:
    n = 50
    x, draw = pictures(n), np.random.default_rng(0)
    order = np.array([draw.permutation(4) for _ in range(n)])
    apply = draw.random(n) < 0.8
    factors = torch.from_numpy(draw.random((n, 4)) + np.array([0.5, 0.5, 0.5, -0.5])).float()
    expected = x.clone()
    for i in np.flatnonzero(apply):
        for k in order[i]:
            expected[i] = TV_JITTER[k](expected[i], factors[i, k].item())
    assert len({tuple(row) for row in order}) > 15 and 0 < apply.sum() < n and len(JITTER) == 4
    torch.testing.assert_close(color_jitter(x, factors, order, apply), expected, rtol=0, atol=1e-5)
    assert torch.equal(color_jitter(x, factors, order, np.zeros(n, dtype=bool)), x)


@pytest.mark.parametrize("side", [32, 9])
def test_blur(side: int) -> None:
    x, sigma, radius = pictures(8, side, side + 3), numbers(8, 0.1, 2.0), 6
    expected = each(lambda picture, s: tv.gaussian_blur(picture, [2 * radius + 1] * 2, [s, s]), x, sigma)
    torch.testing.assert_close(gaussian_blur(x, sigma, radius), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_padded_crop_is_exact(dtype: torch.dtype) -> None:
    n, draw = 40, torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (n, 3, 20, 24), generator=draw).to(dtype)
    top, left = (torch.randint(0, high, (n,), generator=draw) for high in (20 + 8 - 16 + 1, 24 + 8 - 18 + 1))
    top[:2], left[:2] = torch.tensor([0, 12]), torch.tensor([14, 0])
    flip = torch.arange(n) % 2
    ours = padded_crop(x, top, left, flip, (16, 18), padding=4)
    for i in range(n):
        expected = tv.crop(tv.pad(x[i], [4, 4, 4, 4]), int(top[i]), int(left[i]), 16, 18)
        assert torch.equal(ours[i], tv.horizontal_flip(expected) if flip[i] else expected)


def random_boxes(n: int, height: int, width: int, dtype: torch.dtype) -> Boxes:
    draw = np.random.default_rng(height)
    h, w = draw.integers(1, height + 1, n), draw.integers(1, width + 1, n)
    h[0], w[0] = height, width
    top, left = draw.integers(0, height - h + 1), draw.integers(0, width - w + 1)
    rows, columns, zero = np.full(n, 32), np.full(n, 28), np.zeros(n)
    table = np.stack([top, left, h, w, rows, columns, zero, zero, np.arange(n) % 2])
    return Boxes(*torch.from_numpy(table).to(dtype))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (50, 90), (8, 8)])
def test_resized_crop(interpolation: Interpolation, height: int, width: int) -> None:
    n = 24
    x, boxes = pictures(n, height, width), random_boxes(n, height, width, torch.float32)
    ours = resized_crop(x.clone(), boxes, (32, 28), interpolation)
    for i in range(n):
        top, left, h, w = (int(value[i]) for value in boxes[:4])
        enlarges = interpolation == "bilinear" and h <= 32 and w <= 28
        options = {"interpolation": MODES[interpolation], "antialias": not enlarges}
        expected = tv.resized_crop(x[i], top, left, h, w, [32, 28], **options).clamp(0, 1)
        expected = tv.horizontal_flip(expected) if boxes.flip[i] else expected
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=1e-5)


def test_resized_crop_of_bytes_is_that_of_floats() -> None:
    x, boxes = torch.randint(0, 17, (8, 3, 32, 32), dtype=torch.uint8), random_boxes(8, 32, 32, torch.float64)
    expected = resized_crop(x.double() / 16, boxes, (32, 28), "bilinear")
    torch.testing.assert_close(resized_crop(x, boxes, (32, 28), "bilinear", white=16), expected, rtol=0, atol=1e-12)
