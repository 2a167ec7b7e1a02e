"""Augmentation recipes: geometry, then colour, then normalisation; and the recipes of the papers.

Every draw is a function of (seed, epoch, picture, view, operation) alone (`lowbit.data.hashing`). Colour jitter applies
its four operations in an order drawn per picture, as torchvision's ColorJitter does.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from lowbit.data.colour import JITTER, color_jitter, gaussian_blur, grayscale, jitter_table
from lowbit.data.geometry import Geometry, Keep, PaddedCrop, RandomResizedCrop, ResizedCenterCrop, Table
from lowbit.data.hashing import Draws
from lowbit.data.resample import Interpolation
from lowbit.errors import InputError


class Channels(NamedTuple):
    """Mean and standard deviation per channel, of values in [0, 1]."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


CIFAR10 = Channels((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))  # the std most papers use (means of pictures')
IMAGENET = Channels((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DIGITS = Channels((0.3053,) * 3, (0.3760,) * 3)
CHANNELS = {"cifar10": CIFAR10, "cifar100": CIFAR10, "digits": DIGITS}  # most papers give CIFAR-100 CIFAR-10's


def dataset_channels(dataset: str) -> Channels:
    """Mean and std of a dataset by its name; those of ImageNet where it has none of its own."""
    return CHANNELS.get(dataset, IMAGENET)


def flip_share(dataset: str) -> float:
    """How often a training picture of a dataset is mirrored: a mirrored digit is another digit."""
    return 0.0 if dataset == "digits" else 0.5


class Colour(Protocol):
    """A random operation on floats in [0, 1]."""

    def draw(self, draws: Draws) -> Table:
        """Parameters, (V B, k)."""
        ...

    def batch(self, x: Tensor, table: Table) -> Tensor:
        """Apply to (B, 3, H, W) with one row per picture; may overwrite `x`."""
        ...


@dataclass(frozen=True)
class ColorJitter:
    """Brightness, contrast, saturation in 1 +- their strength, hue in +- its own (turns), with probability `p`."""

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1
    p: float = 0.8

    def draw(self, draws: Draws) -> Table:
        """The columns of `jitter_table`: (V B, 11)."""
        n = len(JITTER)
        u = draws.uniform(2 * n + 1)
        strength = np.array([self.brightness, self.contrast, self.saturation, self.hue])
        factors = np.array([1.0, 1.0, 1.0, 0.0]) + (2 * u[:, :n] - 1) * strength
        factors[:, : n - 1] = np.maximum(factors[:, : n - 1], 0)
        order = np.argsort(u[:, n : 2 * n], axis=1, kind="stable")
        return jitter_table(factors, order, u[:, 2 * n] < self.p)

    def batch(self, x: Tensor, table: Table) -> Tensor:
        """Apply to (B, 3, H, W)."""
        return color_jitter(x, table)


def _chosen(table: Table, device: torch.device) -> Tensor:
    """The pictures whose first number is 1."""
    return torch.from_numpy(np.flatnonzero(table[:, 0])).to(device)


@dataclass(frozen=True)
class RandomGrayscale:
    """All channels become the luma, with probability `p`."""

    p: float = 0.2

    def draw(self, draws: Draws) -> Table:
        """Whether to apply: (V B, 1)."""
        return (draws.uniform(1) < self.p).astype(np.float64)

    def batch(self, x: Tensor, table: Table) -> Tensor:
        """Apply to (B, 3, H, W)."""
        chosen = _chosen(table, x.device)
        return x.index_copy_(0, chosen, grayscale(x.index_select(0, chosen)).expand(-1, 3, -1, -1))


@dataclass(frozen=True)
class RandomBlur:
    """Gaussian blur with probability `p` and a standard deviation uniform in `sigma`, in pixels.

    The originals blur with PIL, which approximates the same filter by box filters; three standard deviations are kept.
    """

    p: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def draw(self, draws: Draws) -> Table:
        """Whether to apply, standard deviation: (V B, 2)."""
        u, (low, high) = draws.uniform(2), self.sigma
        return np.stack([u[:, 0] < self.p, low + (high - low) * u[:, 1]], axis=1)

    def batch(self, x: Tensor, table: Table) -> Tensor:
        """Apply to (B, 3, H, W)."""
        radius = min(math.ceil(3 * self.sigma[1]), min(x.shape[2:]) - 1)
        chosen = _chosen(table, x.device)
        if len(chosen) == 0:  # a convolution of no picture is refused
            return x
        sigma = torch.from_numpy(table[:, 1]).to(x.device, x.dtype).index_select(0, chosen)
        return x.index_copy_(0, chosen, gaussian_blur(x.index_select(0, chosen), sigma, radius))


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

    @property
    def is_random(self) -> bool:
        """Whether a picture looks different each time."""
        return bool(self.colour) or not isinstance(self.geometry, Keep | ResizedCenterCrop)

    def draw_geometry(self, draws: Draws, height: int, width: int) -> Table:
        """Where the V views of B pictures of one size are cut, (V B, k), view after view."""
        n = len(draws.index) * len(draws.views)
        return self.geometry.draw(draws.of("geometry"), np.full(n, float(height)), np.full(n, float(width)))

    def draw_colour(self, draws: Draws) -> list[Table]:
        """What happens to the colours of V views of B pictures, one table of V B rows per operation."""
        return [operation.draw(draws.of(f"colour {position}")) for position, operation in enumerate(self.colour)]

    def batch_(self, out: Tensor, x: Tensor, white: int, geometry: Table, colour: Sequence[Table]) -> None:
        """Augment decoded pictures.

        Args:
            out: where the V views are written, (V, B, 3, h, w).
            x: (B, 3, H, W), uint8.
            white: the value that means 1.
            geometry: their rows of `draw_geometry`.
            colour: their rows of `draw_colour`.
        """
        x = x.repeat(len(out), 1, 1, 1) if len(out) > 1 else x  # all views at once: fewer, larger operations
        self.finish_(out, self.geometry.batch(x, geometry, white, out.dtype), white, colour)

    def finish_(self, out: Tensor, x: Tensor, white: int, colour: Sequence[Table]) -> None:
        """Colour and normalise pictures whose geometry is done.

        The arithmetic is that of torchvision's `ToTensor` and `Normalize`, operation by operation: values
        that are only cropped and normalised are equal to theirs to the last bit.

        Args:
            out: where the V views are written, (V, B, 3, h, w).
            x: (V B, 3, h, w), uint8, or floats in [0, 1] (overwritten).
            white: the uint8 value that means 1.
            colour: their rows of `draw_colour`.
        """
        if not x.is_floating_point():
            x = x.to(out.dtype).div_(white)
        for operation, table in zip(self.colour, colour, strict=True):
            x = operation.batch(x, table)
        mean, std = _constants(self.channels, out.device, out.dtype)
        torch.div(x.view(out.shape).sub_(mean), std, out=out)


@cache
def _constants(channels: Channels, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, (3, 1, 1) each."""
    mean, std = (torch.tensor(c, device=device, dtype=dtype).view(-1, 1, 1) for c in channels)
    return mean, std


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


def from_timm(config: Mapping[str, Any], flip: float = 0.5) -> tuple[Recipe, Recipe]:
    """Training and evaluation recipes of a pretrained net (`--pretrained`).

    Args:
        config: what `timm.data.resolve_model_data_config` returns: input_size, interpolation, mean, std, crop_pct,
            crop_mode.
        flip: share of training pictures that are mirrored.

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
    crop = RandomResizedCrop(side, interpolation=interpolation, flip=flip)
    return Recipe(channels, crop), Recipe(channels, center)
