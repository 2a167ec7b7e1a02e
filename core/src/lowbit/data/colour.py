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


def _per_picture(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


LUMA = (0.2989, 0.587, 0.114)  # torchvision's ITU-R 601 weights of red, green and blue


def grayscale(x: Tensor) -> Tensor:
    """Luma, (B, 1, H, W)."""
    r, g, b = x.unbind(1)
    return (r * _number(LUMA[0], x.dtype)).add_(g, alpha=LUMA[1]).add_(b, alpha=LUMA[2]).unsqueeze_(1)


def brightness_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by `factor`, (B,), at least 0."""
    return x.mul_(_per_picture(factor)).clamp_(max=1)


def contrast_(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from the picture's mean luma by `factor`, (B,), at least 0."""
    mean = (x.mean((2, 3)) * x.new_tensor(LUMA)).sum(1)
    return x.mul_(_per_picture(factor)).add_(_per_picture(mean * (1 - factor))).clamp_(0, 1)


def saturation_(x: Tensor, factor: Tensor) -> Tensor:
    """Move away from the pixel's luma by `factor`, (B,), at least 0."""
    luma = grayscale(x).mul_(_per_picture(1 - factor))
    return x.mul_(_per_picture(factor)).add_(luma).clamp_(0, 1)


@cache
def _number(value: float, dtype: torch.dtype) -> Tensor:
    """A number as a CPU tensor without dimensions; Python numbers cost four times as much per call."""
    return torch.tensor(value, dtype=dtype)


def hue_(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of the HSV hexcone by `shift`, (B,), turns in [-0.5, 0.5].

    With chroma c and hue h in turns, red is min + c (clamp(6 |h - 1/2|) - 1), green min + c (2 - clamp(6 |h - 1/3|))
    and blue min + c (2 - clamp(6 |h - 2/3|)), where clamp is to [1, 2]; h is measured from the smallest channel.
    Few temporaries, written over again and again, so that they stay in the cache. Selections are interpolations with
    weights 0 and 1: comparisons that return booleans are not vectorised on CPUs.
    """
    r, g, b = x.unbind(1)
    half, third, two_thirds, six, tiny = (_number(v, x.dtype) for v in (1 / 2, 1 / 3, 2 / 3, 6.0, 1e-12))
    low, c = torch.minimum(r, g), torch.maximum(r, g)
    torch.minimum(low, b, out=low)
    torch.maximum(c, b, out=c).sub_(low)
    t = (r - low).sign_()  # 0 where red is the smallest, else 1
    h, u = (b - g).add_(c, alpha=9), (r - b).add_(c, alpha=11)  # sixths of a turn, times c, one turn ahead
    torch.lerp(h, u, t, out=h)
    torch.sub(b, low, out=t).sign_()
    torch.lerp(torch.sub(g, r, out=u).add_(c, alpha=7), h, t, out=h)
    base, top = torch.sub(low, c, out=u), low.add_(c, alpha=2)
    c.mul_(six)
    h.div_(torch.maximum(c, tiny, out=t)).add_(shift.view(-1, 1, 1)).frac_()
    torch.addcmul(base, torch.sub(h, half, out=t).abs_().clamp_(1 / 6, 2 / 6), c, out=r)
    torch.addcmul(top, torch.sub(h, third, out=t).abs_().clamp_(1 / 6, 2 / 6), c, value=-1, out=g)
    torch.addcmul(top, h.sub_(two_thirds).abs_().clamp_(1 / 6, 2 / 6), c, value=-1, out=b)
    return x


JITTER = (brightness_, contrast_, saturation_, hue_)


def color_jitter(x: Tensor, factors: Tensor, order: NDArray[np.int64], apply: NDArray[np.bool_]) -> Tensor:
    """Brightness, contrast, saturation and hue in an order of its own for each picture.

    Args:
        x: (B, 3, H, W).
        factors: of the four operations in the order of `JITTER`, (B, 4), on the device of `x`.
        order: which operation comes first, second, ..., (B, 4), a permutation of 0..3 per row.
        apply: False leaves a picture as it is, (B,).

    Returns:
        A new tensor, (B, 3, H, W), contiguous.
    """
    here = np.arange(len(x))  # the picture that stands at each place
    place = np.arange(len(x))  # and its inverse
    for slot in range(len(JITTER)):
        group = np.where(apply, order[:, slot], len(JITTER))
        here = np.argsort(group, kind="stable")
        move = torch.from_numpy(place[here]).to(x.device)
        place = np.argsort(here)
        x = x.index_select(0, move)
        factor = factors.index_select(0, torch.from_numpy(here).to(x.device))
        ends = np.searchsorted(group[here], np.arange(len(JITTER) + 1))
        for k, operation in enumerate(JITTER):
            if ends[k] < ends[k + 1]:
                operation(x[ends[k] : ends[k + 1]], factor[ends[k] : ends[k + 1], k])
    return x.index_select(0, torch.from_numpy(place).to(x.device))


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
