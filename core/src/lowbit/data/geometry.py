"""Geometry of a recipe: which part of each picture is shown, at which size, mirrored or not.

A geometry draws its parameters on the CPU as a table of numbers, one row per picture, from the pictures' sizes. It is
applied to a decoded batch on the compute device, or to one PIL picture in a worker.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from lowbit.data.hashing import Draws
from lowbit.data.resample import Boxes, Interpolation, padded_crop, random_resized_crop, resized_crop
from lowbit.errors import InputError

Table = NDArray[np.float64]
PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FILTER_PIXELS = {"bilinear": 1, "bicubic": 2}  # on either side of the centre
ATTEMPTS = 10  # torchvision's
WHOLE = 2**25  # pixels of a resized picture that are made to cut a window out


class Geometry(Protocol):
    """The geometric part of a recipe; one row of a table belongs to one picture."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what is shown of a picture of that size."""
        ...

    def draw(self, draws: Draws, height: Table, width: Table) -> Table:
        """Parameters, (B, k), for pictures of these sizes, (B,) each, in pixels."""
        ...

    def batch(self, x: Tensor, table: Table, white: float, dtype: torch.dtype) -> Tensor:
        """Apply to (B, 3, H, W), uint8: returns uint8 as it is, or floats in [0, 1] where `white` became 1."""
        ...

    def picture(self, image: Image.Image, row: Table) -> Image.Image:
        """Apply to one decoded picture with its row, (k,)."""
        ...


@dataclass(frozen=True)
class Keep:
    """Show pictures as they are; they must be of one size."""

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The picture's own."""
        return height, width

    def draw(self, draws: Draws, height: Table, width: Table) -> Table:
        """Nothing to draw: (B, 0)."""
        return np.empty((len(height), 0))

    def batch(self, x: Tensor, table: Table, white: float, dtype: torch.dtype) -> Tensor:
        """Return `x`."""
        return x

    def picture(self, image: Image.Image, row: Table) -> Image.Image:
        """Return `image`."""
        return image


@dataclass(frozen=True)
class PaddedCrop:
    """A random window of the picture padded with black, mirrored with probability `flip`.

    Attributes:
        side: height and width of the window. padding: pixels on each side. flip: probability.
    """

    side: int
    padding: int
    flip: float = 0.5

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The window's."""
        if min(height, width) + 2 * self.padding < self.side:
            raise InputError(
                f"a {height}x{width} picture with {self.padding} pixels of padding is smaller than the crop of "
                f"{self.side}; use pictures of at least {self.side - 2 * self.padding} pixels or resize them"
            )
        return self.side, self.side

    def draw(self, draws: Draws, height: Table, width: Table) -> Table:
        """Top, left, flip: (B, 3)."""
        u = draws.uniform(3)
        top = np.floor(u[:, 0] * (height + 2 * self.padding - self.side + 1))
        left = np.floor(u[:, 1] * (width + 2 * self.padding - self.side + 1))
        return np.stack([top, left, u[:, 2] < self.flip], axis=1)

    def batch(self, x: Tensor, table: Table, white: float, dtype: torch.dtype) -> Tensor:
        """Windows of (B, 3, H, W), still uint8."""
        top, left, flip = torch.from_numpy(table.T.astype(np.int64)).to(x.device)
        return padded_crop(x, top, left, flip, (self.side, self.side), self.padding)

    def picture(self, image: Image.Image, row: Table) -> Image.Image:
        """The window of one picture; PIL fills what lies outside with black."""
        self.size(image.height, image.width)
        top, left = int(row[0]) - self.padding, int(row[1]) - self.padding
        return _mirror(image.crop((left, top, left + self.side, top + self.side)), row[2])


def _mirror(image: Image.Image, flip: float) -> Image.Image:
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else image


def _resized(image: Image.Image, row: Table, side: int, interpolation: Interpolation) -> Image.Image:
    """What `resized_crop` does, with PIL: crop, resize (rounded to bytes after each pass), cut the window, mirror."""
    top, left, height, width, rows, columns, first_row, first_column, flip = (int(value) for value in row)
    if (height, width) != (image.height, image.width):
        image = image.crop((left, top, left + width, top + height))
    if columns * max(rows, height) > WHOLE:  # a very long picture, most of which the window does not show
        return _mirror(_window(image, (columns, rows), (first_column, first_row), side, interpolation), flip)
    image = image.resize((columns, rows), PIL_FILTERS[interpolation])
    return _mirror(image.crop((first_column, first_row, first_column + side, first_row + side)), flip)


def _window(
    image: Image.Image, total: tuple[int, int], first: tuple[int, int], side: int, interpolation: Interpolation
) -> Image.Image:
    """The window at `first` of the picture resized to `total` (columns, rows), from the pixels that it needs alone.

    It differs from the window of the whole by at most a level per pass, where PIL rounds a tie the other way.
    """
    start, size = [], []  # of the needed part
    box: list[tuple[float, float]] = []  # what the window shows of it
    for length, out, begin in zip(image.size, total, first, strict=True):
        scale = length / out
        margin = math.ceil(FILTER_PIXELS[interpolation] * max(scale, 1)) + 1
        low = max(0, math.floor(begin * scale) - margin)
        start.append(low)
        size.append(min(length, math.ceil((begin + side) * scale) + margin) - low)
        box.append((begin * scale - low, min((begin + side) * scale - low, size[-1])))
    (left, top), (width, height), ((x0, x1), (y0, y1)) = start, size, box
    part, resample = image.crop((left, top, left + width, top + height)), PIL_FILTERS[interpolation]
    if height <= width:  # the smaller picture in between
        part = part.resize((side, height), resample, (x0, 0, x1, height))
        return part.resize((side, side), resample, (0, y0, side, y1))
    part = part.resize((width, side), resample, (0, y0, width, y1))
    return part.resize((side, side), resample, (x0, 0, x1, side))


class _Resizing:
    """Both ways of applying a table of `Boxes`."""

    side: int
    interpolation: Interpolation

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The same for every picture."""
        return self.side, self.side

    def batch(self, x: Tensor, table: Table, white: float, dtype: torch.dtype) -> Tensor:
        """Floats in [0, 1], (B, 3, side, side)."""
        boxes = Boxes(*torch.from_numpy(table.T).to(x.device, dtype))
        return resized_crop(x, boxes, (self.side, self.side), self.interpolation, white)

    def picture(self, image: Image.Image, row: Table) -> Image.Image:
        """One picture, (side, side)."""
        return _resized(image, row, self.side, self.interpolation)


@dataclass(frozen=True)
class RandomResizedCrop(_Resizing):
    """A random box resized to a square, mirrored with probability `flip` (torchvision's distribution of boxes).

    The mirror image is taken here, not at the end of a recipe: it commutes with everything that follows.

    Attributes:
        side: of the result, in pixels. scale: range of the box's share of the picture's area.
        ratio: range of width / height, drawn log-uniformly. flip: probability.
    """

    side: int
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    flip: float = 0.5

    def batch(self, x: Tensor, table: Table, white: float, dtype: torch.dtype) -> Tensor:
        """Floats in [0, 1], (B, 3, side, side)."""
        return random_resized_crop(x, table, self.side, self.interpolation, white, dtype)

    def draw(self, draws: Draws, height: Table, width: Table) -> Table:
        """The columns of `Boxes`: (B, 9). The first of ten boxes that fits is taken, else the largest central one."""
        u, b = draws.uniform(2 * ATTEMPTS + 3), np.arange(len(height))
        tall, wide = height[:, None], width[:, None]
        low, high = self.scale
        area = tall * wide * (low + (high - low) * u[:, :ATTEMPTS])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        ratio = np.exp(low + (high - low) * u[:, ATTEMPTS : 2 * ATTEMPTS])
        w, h = np.round(np.sqrt(area * ratio)), np.round(np.sqrt(area / ratio))
        fits = (w > 0) & (w <= wide) & (h > 0) & (h <= tall)
        first, fits_any = fits.argmax(1), fits.any(1)
        w0 = np.minimum(width, np.round(height * self.ratio[1]))
        h0 = np.minimum(height, np.round(width / self.ratio[0]))
        w, h = np.where(fits_any, w[b, first], w0), np.where(fits_any, h[b, first], h0)
        top = np.where(fits_any, np.floor(u[:, -3] * (height - h + 1)), (height - h) // 2)
        left = np.where(fits_any, np.floor(u[:, -2] * (width - w + 1)), (width - w) // 2)
        side, zero = np.full_like(w, self.side), np.zeros_like(w)
        return np.stack([top, left, h, w, side, side, zero, zero, u[:, -1] < self.flip], axis=1)


@dataclass(frozen=True)
class ResizedCenterCrop(_Resizing):
    """Resize the shorter side, then show the central square (evaluation).

    Attributes:
        resize: the shorter side after resizing, in pixels, at least `side`. side: of the square shown.
        squash: resize both sides to `resize`, which distorts (some timm nets were trained so).
    """

    resize: int
    side: int
    interpolation: Interpolation = "bilinear"
    squash: bool = False

    def __post_init__(self) -> None:
        if self.resize < self.side:
            raise InputError(f"resizing to {self.resize} and showing {self.side} pixels: resize to {self.side} or more")

    def draw(self, draws: Draws, height: Table, width: Table) -> Table:
        """The columns of `Boxes`: (B, 9); nothing is random."""
        short = np.minimum(height, width)
        rows = np.full_like(height, self.resize) if self.squash else np.floor(self.resize * height / short)
        columns = np.full_like(width, self.resize) if self.squash else np.floor(self.resize * width / short)
        row, column, zero = np.round((rows - self.side) / 2), np.round((columns - self.side) / 2), np.zeros_like(height)
        return np.stack([zero, zero, height, width, rows, columns, row, column, zero], axis=1)
