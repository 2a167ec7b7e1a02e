"""Colour and blur of a batch, with parameters of its own for each picture; floats in [0, 1], (B, 3, H, W).

Each function equals its namesake in `torchvision.transforms.v2.functional` for the same parameters (1e-5 in float32).
Functions whose name ends in `_` work in place. Which pictures an operation concerns is known on the CPU, where all
draws are made: groups are slices of a reordered batch, and the device is never asked.
"""

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LUMA = (0.2989, 0.587, 0.114)  # torchvision's ITU-R 601 weights of red, green and blue


def grayscale(x: Tensor) -> Tensor:
    """Luma, (B, 1, H, W)."""
    r, g, b = x.unbind(1)
    return (r * _number(LUMA[0], x.dtype)).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze_(1)


def blend_(x: Tensor, factor: Tensor, mean: Tensor, luma: Tensor) -> Tensor:
    """Move each picture away from a paler one: brightness, contrast and saturation are one operation.

    The paler picture is the mean of the luma for contrast, the luma for saturation, and black for brightness.

    Args:
        x: (B, 3, H, W).
        factor: at least 0, (B, 1, 1, 1); 0 gives the paler picture, 1 leaves `x` as it is.
        mean: 1 for contrast, else 0, (B, 1, 1, 1).
        luma: 1 for saturation, else 0, (B, 1, 1, 1).
    """
    pale = grayscale(x)
    level = pale.mean((2, 3), keepdim=True).mul_(mean)
    return torch.lerp(pale.mul_(luma).add_(level), x, factor, out=x).clamp_(0, 1)


@cache
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a CPU tensor without dimensions; Python numbers cost four times as much per call."""
    return torch.tensor(value, dtype=dtype)


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of the HSV hexcone by `shift`, (B, 1, 1), turns in [-0.5, 0.5].

    With max, min and chroma c = max - min, the hue is +-(c + green + blue - red - min) / 6c turns, with the sign of
    green - blue. A hue h in [0, 1) has red = min - c + 6c clamp(|h - 1/2|), green = min + 2c - 6c clamp(|h - 1/3|)
    and blue = min + 2c - 6c clamp(|h - 2/3|), where clamp is to [1/6, 2/6].
    Few temporaries, written over again and again, so that they stay in the cache.
    """
    r, g, b = x.unbind(1)
    half, third, two_thirds, tiny = (_number(v, x.dtype) for v in (1 / 2, 1 / 3, 2 / 3, 1e-12))
    low, c = torch.minimum(r, g), torch.maximum(r, g)
    torch.minimum(low, b, out=low)
    torch.maximum(c, b, out=c).sub_(low)
    base = low - c
    h = (g + b).sub_(r).sub_(base)
    # cyan (green = blue > 0) may have either sign, but not 0; a sign is cheaper than copysign, which is not vectorised
    t = torch.sub(g, b, alpha=1 - 1e-7).sign_()
    h.mul_(t)
    top = low.add_(c, alpha=2)
    torch.addcdiv(shift + 2, h, torch.maximum(c, tiny, out=t), value=1 / 6, out=h).frac_()
    torch.addcmul(base, torch.sub(h, half, out=t).abs_().clamp_(1 / 6, 2 / 6), c, value=6, out=r)
    torch.addcmul(top, torch.sub(h, third, out=t).abs_().clamp_(1 / 6, 2 / 6), c, value=-6, out=g)
    torch.addcmul(top, h.sub_(two_thirds).abs_().clamp_(1 / 6, 2 / 6), c, value=-6, out=b)
    return x


JITTER = ("brightness", "contrast", "saturation", "hue")
BLENDS = len(JITTER) - 1


def jitter_table(
    factors: NDArray[np.float64], order: NDArray[np.int64], apply: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """What `color_jitter` does to each picture.

    Args:
        factors: of the four operations in the order of `JITTER`, (B, 4).
        order: which operation comes first, second, ..., (B, 4), a permutation of 0..3 per row.
        apply: False leaves a picture as it is, (B,).

    Returns:
        (B, 11): how many blends come before hue (4: nothing happens), the shift of hue, then the factors of the first,
        second and third blend, then the three `mean` of `blend_`, then the three `luma`.
    """
    contrast, saturation, hue = (JITTER.index(name) for name in JITTER[1:])
    place = np.where(apply, (order == hue).argmax(1), len(JITTER))
    blends = order[order != hue].reshape(-1, BLENDS)
    columns = (np.take_along_axis(factors, blends, 1), blends == contrast, blends == saturation)
    return np.concatenate([place[:, None], factors[:, hue:], *columns], axis=1)


def color_jitter(x: Tensor, table: NDArray[np.float64]) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of its own for each picture.

    Pictures are sorted by the place of hue in their order, so that every operation is one call on a slice: hue is
    turned once for all of them, and blend j comes before it for those at the end and after it for those before them.

    Args:
        x: (B, 3, H, W).
        table: of `jitter_table`, (B, 11).

    Returns:
        A new tensor, (B, 3, H, W), contiguous.
    """
    rows = table[:, 0].argsort(kind="stable")
    table = table[rows]
    *ends, n = table[:, 0].searchsorted((0, 1, 2, BLENDS), side="right").tolist()
    there, back = torch.from_numpy(np.stack([rows, rows.argsort()])).to(x.device).unbind()
    x = x.index_select(0, there)
    _, shift, *blends = torch.from_numpy(table).to(x.device, x.dtype)[..., None, None, None].unbind(1)
    for j, end in enumerate(ends):
        if end < n:
            blend_(x[end:n], *(column[end:n] for column in blends[j::BLENDS]))
    if n > 0:
        hue_(x[:n], shift[:n, 0])
    for j, end in enumerate(ends):
        if end > 0:
            blend_(x[:end], *(column[:end] for column in blends[j::BLENDS]))
    return x.index_select(0, back)


def gaussian_blur(x: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Gaussian filter of 2 radius + 1 taps per axis, reflected at the border.

    Args:
        x: (B, C, H, W), each side longer than `radius`.
        sigma: standard deviation in pixels, (B,).
        radius: taps on each side of the centre.

    Returns:
        A new tensor, (B, C, H, W).
    """
    b, c, height, width = x.shape
    taps = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    kernel = (taps / sigma[:, None]).square_().mul_(-0.5).exp_()
    kernel = kernel.div_(kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)[:, None, None, :]
    x = F.pad(x, (radius,) * 4, mode="reflect").reshape(1, b * c, height + 2 * radius, width + 2 * radius)
    x = F.conv2d(F.conv2d(x, kernel, groups=b * c), kernel.mT, groups=b * c)
    return x.view(b, c, height, width)
