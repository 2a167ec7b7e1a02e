"""Geometry of a batch, with parameters of its own for each picture: padded crops and resized crops with a flip.

Each function equals its namesake in `torchvision.transforms.v2.functional` for the same parameters. Resizing follows
the antialiased filters of PIL and torch: a triangle (bilinear) or Keys' cubic with a = -0.5 (bicubic), stretched by the
scale when the picture shrinks; when it is enlarged the triangle is plain bilinear interpolation, without antialiasing.
Both passes of a separable filter are matrix products with one small matrix per picture, so that a batch of different
boxes is two batched products, and the flip only reverses the order of columns of a matrix.
"""

from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]


class Boxes(NamedTuple):
    """What to resize to what, per picture; all (B,), on the device of the pictures.

    Attributes:
        top, left, height, width: the part of the source to resize, in pixels, integers stored as floats.
        rows, columns: the size it is resized to, of which `resized_crop` returns a window.
        row, column: the window's first row and column.
        flip: 1 to mirror left and right afterwards, else 0.
    """

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor
    rows: Tensor
    columns: Tensor
    row: Tensor
    column: Tensor
    flip: Tensor


def padded_crop(x: Tensor, top: Tensor, left: Tensor, flip: Tensor, size: tuple[int, int], padding: int) -> Tensor:
    """Pad with zeros, cut a window out of each picture, mirror some of them.

    A window of a flattened picture is one contiguous run, so all windows are one `index_select` of long runs.

    Args:
        x: (B, C, H, W), any dtype.
        top: the window's first row in the padded picture, (B,), int64, in 0..H + 2 padding - h.
        left: its first column, likewise.
        flip: (B,), int64 in {0, 1}.
        size: h, w of the window.
        padding: pixels on each side.

    Returns:
        (B, C, h, w) of the same dtype, not contiguous.
    """
    b, c, height, width = x.shape
    h, w = size
    full_h, full_w = height + 2 * padding, width + 2 * padding
    picture, run = c * full_h * full_w, c * full_h * full_w - (full_h - h) * full_w - (full_w - w)
    flat = x.new_zeros(2 * b * picture)
    inside = flat.view(2, b, c, full_h, full_w)[..., padding : padding + height, padding : padding + width]
    inside[0], inside[1] = x, x.flip(-1)
    corner = torch.where(flip == 1, full_w - w - left, left)  # where the mirrored window starts in the mirrored picture
    start = (flip * b + torch.arange(b, device=x.device)) * picture + top * full_w + corner
    runs = flat.as_strided((2 * b * picture - run + 1, run), (1, 1)).index_select(0, start)
    return runs.as_strided((b, c, h, w), (run, full_h * full_w, full_w, 1))


def _filter(distance: Tensor, interpolation: Interpolation) -> Tensor:
    """The filter's value at a distance from its centre, in taps; `distance` is overwritten."""
    d = distance.abs_()
    if interpolation == "bilinear":
        return 1 - d.clamp_(max=1)
    near = (1.5 * d - 2.5) * d * d + 1  # Keys 1981 with a = -0.5
    far = ((-0.5 * d + 2.5) * d - 4) * d + 2
    return torch.where(d < 1, near, torch.where(d < 2, far, 0))


def _weights(
    part: tuple[Tensor, Tensor],
    target: tuple[Tensor, Tensor],
    flip: Tensor | None,
    shape: tuple[int, int],
    interpolation: Interpolation,
) -> Tensor:
    """Resizing along one axis as matrices to multiply from the right, (B, in, out) for `shape` (in, out).

    The `part` of the source that begins at `start` and has `length` pixels becomes `total` pixels, of which a window
    begins at `first`. Output pixel i is centred at length / total * (first + i + 0.5) of the part; pixels outside the
    part have weight 0, and the weights of an output pixel sum to 1.
    """
    (start, length), (total, first), (size, out) = part, target, shape
    scale = length / total
    taps = scale.clamp(min=1).reciprocal_()[:, None]  # 1 / stretch of the filter
    i = torch.arange(out, device=start.device, dtype=start.dtype)
    if flip is not None:
        i = torch.where(flip[:, None] == 1, out - 1 - i, i)
    centre = (first[:, None] + i + 0.5).mul_(scale[:, None]).mul_(taps)
    pixel = torch.arange(size, device=start.device, dtype=start.dtype) - start[:, None]
    outside = (pixel < 0) | (pixel >= length[:, None])
    pixel = (pixel + 0.5).mul_(taps).masked_fill_(outside, 1e6)
    weights = _filter(pixel[:, :, None] - centre[:, None, :], interpolation)
    return weights.div_(weights.sum(1, keepdim=True))


def _resample(x: Tensor, down: Tensor, across: Tensor, interpolation: Interpolation) -> Tensor:
    """Multiply (B, C, H, W) by matrices (B C, H, h) and (B, W, w): (B, C, h, w)."""
    b, c, height, width = x.shape
    rows = torch.bmm(x.to(across.dtype).reshape(b, c * height, width), across)
    out = torch.bmm(down.mT, rows.view(b * c, height, -1)).view(b, c, down.shape[2], -1)
    return out.clamp_(0, 1) if interpolation == "bicubic" else out


def resized_crop(
    x: Tensor, boxes: Boxes, size: tuple[int, int], interpolation: Interpolation, white: float = 1
) -> Tensor:
    """Resize a box of each picture and mirror some of them.

    Args:
        x: (B, C, H, W), uint8 or floating.
        boxes: per picture, in the floating dtype of the result.
        size: h, w of the result.
        interpolation: antialiased when shrinking; bicubic overshoots and is clamped to [0, 1].
        white: the value of `x` that becomes 1.

    Returns:
        (B, C, h, w), in the dtype of `boxes`.
    """
    c, height, width = x.shape[1:]
    part, target = (boxes.top, boxes.height), (boxes.rows, boxes.row)
    down = _weights(part, target, None, (height, size[0]), interpolation).repeat_interleave(c, 0)
    part, target = (boxes.left, boxes.width), (boxes.columns, boxes.column)
    across = _weights(part, target, boxes.flip, (width, size[1]), interpolation)
    return _resample(x, down, across.div_(white), interpolation)


@cache
def _bank(
    size: int, out: int, interpolation: Interpolation, white: float, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrices that resize any part of an axis, one after another, (2 (size + 1) 2 size out,).

    For each flip and length there is a block of 2 size rows of `out` weights, zero but for those of a part that begins
    at row `size`. The matrix for a part that begins at `start` is the run of `size` rows from row size - start on.
    """
    length = torch.arange(size + 1, dtype=dtype).clamp(min=1).repeat(2)
    flip = torch.arange(2, dtype=dtype).repeat_interleave(size + 1)
    total = torch.full_like(length, out)
    zero = torch.zeros_like(length)
    weights = _weights((zero, length), (total, zero), flip, (size, out), interpolation).div_(white)
    return torch.cat([torch.zeros_like(weights), weights], 1).flatten().to(device)


def random_resized_crop(
    x: Tensor, table: NDArray[np.float64], side: int, interpolation: Interpolation, white: float, dtype: torch.dtype
) -> Tensor:
    """What `resized_crop` does, for small pictures: the matrices of all possible boxes are made once.

    They take 4 (H + 1) H side floats: 0.5 MiB for CIFAR's 32 x 32 to 32, 14 MiB for 64 x 64 to 224.

    Args:
        x: (B, C, H, W), uint8 or floating.
        table: the columns of `Boxes`, (B, 9), whose window is the whole.
        side: height and width of the result.
        interpolation: as for `resized_crop`.
        white: the value of `x` that becomes 1.
        dtype: of the result.

    Returns:
        (B, C, side, side).
    """
    c, height, width = x.shape[1:]
    top, left, h, w, *_, flip = table.astype(np.int64).T
    down = np.repeat((2 * height * h + height - top) * side, c)
    across = (2 * width * (flip * (width + 1) + w) + width - left) * side

    def matrices(start: NDArray[np.int64], size: int, white: float) -> Tensor:
        bank = _bank(size, side, interpolation, white, dtype, x.device)
        runs = bank.as_strided((len(bank) - size * side + 1, size * side), (1, 1))
        return runs.index_select(0, torch.from_numpy(start).to(x.device)).view(-1, size, side)

    return _resample(x, matrices(down, height, 1), matrices(across, width, white), interpolation)
