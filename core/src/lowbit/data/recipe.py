"""Augmentation recipes: geometry, then colour, then normalisation; and the recipes of the papers.

Every draw is a function of (seed, epoch, picture, view, operation) alone (`lowbit.data.hashing`). Colour jitter applies
its four operations in an order drawn per picture, as torchvision's ColorJitter does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lowbit.data.colour import JITTER, color_jitter, gaussian_blur, grayscale
from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop
from lowbit.data.hashing import Draws
from lowbit.data.resample import Interpolation
from lowbit.errors import InputError


class Channels(NamedTuple):
    """Mean and standard deviation per channel, of values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = Channels((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # the std most papers use (means of pictures')
CIFAR100 = Channels((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761))
IMAGENET = Channels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = Channels((0.3053,) * 3, (0.3760,) * 3)


class Colour(Protocol):
    """A random operation on floats in [0, 1]."""

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Apply to (B, 3, H, W); may overwrite it."""
        ...


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation in 1 +- their strength, hue in +- its own (turns), with probability `p`."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Apply to (B, 3, H, W)."""
        n = len(JITTER)
        u = draws.uniform(2 * n + 1)
        strength = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        factors = np.array([1.0, 1.0, 1.0, 0.0]) + (2 * u[:, :n] - 1) * strength
        factors[:, : n - 1] = np.maximum(factors[:, : n - 1], 0)
        order = np.argsort(u[:, n : 2 * n], axis=1, kind="stable")
        return color_jitter(x, torch.from_numpy(factors).to(x.device, x.dtype), order, u[:, 2 * n] < self.p)


def _chosen(draws: Draws, p: float, device: torch.device) -> Tensor:
    return torch.from_numpy(np.flatnonzero(draws.uniform(1)[:, 0] < p)).to(device)


@dataclass(frozen=True)
class RandomGrayscale:
    """All channels become the luma, with probability `p`."""

    p: float = 0.2

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Apply to (B, 3, H, W)."""
        chosen = _chosen(draws, self.p, x.device)
        return x.index_copy_(0, chosen, grayscale(x.index_select(0, chosen)).expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur with probability `p` and a standard deviation uniform in `sigma`, in pixels.

    The originals blur with PIL, which approximates the same filter by box filters; three standard deviations are kept.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def __call__(self, x: Tensor, draws: Draws) -> Tensor:
        """Apply to (B, 3, H, W)."""
        radius = min(math.ceil(3 * self.sigma[1]), min(x.shape[2:]) - 1)
        chosen = _chosen(draws, self.p, x.device)
        if len(chosen) == 0:  # a convolution of no picture is refused
            return x
        low, high = self.sigma
        sigma = torch.from_numpy(low + (high - low) * draws.uniform(2)[:, 1]).to(x.device, x.dtype)
        blurred = gaussian_blur(x.index_select(0, chosen), sigma.index_select(0, chosen), radius)
        return x.index_copy_(0, chosen, blurred)


@dataclass(frozen=True)
class Recipe:
    """What happens to each picture on its way into the net.

    Attributes:
        channels: for the normalisation at the end.
        geometry: which part is shown, at which size. colour: what happens to it, in this order.
    """

    channels: Channels
    geometry: Geometry
    colour: tuple[Colour, ...] = ()

    def batch_(self, out: Tensor, x: Tensor, white: int, draws: Draws) -> None:
        """Augment decoded pictures.

        Args:
            out: where the V views of `draws` are written, (V, B, 3, h, w).
            x: (B, 3, H, W), uint8.
            white: the value that means 1.
            draws: for the B pictures.
        """
        x = x.repeat(len(out), 1, 1, 1) if len(out) > 1 else x  # all views at once: fewer, larger operations
        sizes = (np.full(len(x), float(side)) for side in x.shape[2:])
        table = self.geometry.draw(draws.of("geometry"), *sizes)
        self.finish_(out, self.geometry.batch(x, table, white, out.dtype), white, draws)

    def finish_(self, out: Tensor, x: Tensor, white: int, draws: Draws) -> None:
        """Colour and normalise pictures whose geometry is done.

        The arithmetic is that of torchvision's `ToTensor` and `Normalize`, operation by operation: values
        that are only cropped and normalised are equal to theirs to the last bit.

        Args:
            out: where the V views of `draws` are written, (V, B, 3, h, w).
            x: (V B, 3, h, w), uint8, or floats in [0, 1] (overwritten).
            white: the uint8 value that means 1.
            draws: for the B pictures.
        """
        if not x.is_floating_point():
            x = x.to(out.dtype).div_(white)
        for position, operation in enumerate(self.colour):
            x = operation(x, draws.of(f"colour {position}"))
        mean, std = (torch.tensor(c, device=out.device, dtype=out.dtype).view(-1, 1, 1) for c in self.channels)
        torch.sub(x.view(out.shape), mean, out=out).div_(std)


def plain(channels: Channels) -> Recipe:
    """Pictures as they are, normalised (evaluation of small pictures)."""
    return Recipe(channels, Keep())


def cifar_train(channels: Channels = CIFAR10, side: int = 32, padding: int = 4) -> Recipe:
    """Supervised training on small pictures: a random crop of the picture padded with black, and a flip."""
    return Recipe(channels, PaddedCrop(side, padding))


def imagenet_train(
    side: int = 224,
    channels: Channels = IMAGENET,
    scale: tuple[float, float] = (0.08, 1.0),
    interpolation: Interpolation = "bilinear",
) -> Recipe:
    """Supervised training on large pictures: a random resized crop and a flip."""
    return Recipe(channels, RandomResizedCrop(side, scale, interpolation=interpolation))


def imagenet_eval(
    side: int = 224, resize: int = 256, channels: Channels = IMAGENET, interpolation: Interpolation = "bilinear"
) -> Recipe:
    """Evaluation of large pictures: the shorter side resized, the centre shown."""
    return Recipe(channels, ResizedCenterCrop(resize, side, interpolation))


def ssl_views(side: int, channels: Channels, blur: bool) -> Recipe:
    """The view recipe of SSQL and US3L, for each view: crop, flip, jitter, grey, and off CIFAR a blur half the time."""
    colour: tuple[Colour, ...] = (ColorJitter(), RandomGrayscale())
    return Recipe(channels, RandomResizedCrop(side, (0.2, 1.0)), (*colour, RandomBlur()) if blur else colour)


def from_timm(config: Mapping[str, Any]) -> tuple[Recipe, Recipe]:
    """Training and evaluation recipes of a pretrained net (`--pretrained`).

    Args:
        config: what `timm.data.resolve_model_data_config` returns: input_size, interpolation, mean, std, crop_pct,
            crop_mode.

    Raises:
        InputError: the net wants a crop, an interpolation or a shape that is not supported.
    """
    _, side, width = config["input_size"]
    interpolation, mode = config["interpolation"], config.get("crop_mode") or "center"
    if side != width or interpolation not in ("bilinear", "bicubic") or mode not in ("center", "squash"):
        raise InputError(
            f"this pretrained net reads {side}x{width} pictures, {interpolation}, crop mode {mode}; supported are "
            "square pictures, bilinear or bicubic, center or squash: choose another net"
        )
    channels = Channels(tuple(config["mean"]), tuple(config["std"]))
    center = ResizedCenterCrop(math.floor(side / config["crop_pct"]), side, interpolation, squash=mode == "squash")
    return imagenet_train(side, channels, interpolation=interpolation), Recipe(channels, center)
