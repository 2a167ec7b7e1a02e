"""What the papers' nets share as timm models: the classifier behind a global pool, and their configuration."""

from typing import Any

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


class PooledNet(nn.Module):
    """timm's interface for a net that ends in a global average pool and `fc`.

    A subclass sets `num_features`, defines `forward_features` and calls `reset_classifier`.
    """

    num_features: int

    def get_classifier(self) -> nn.Module:
        """The last layer (timm's name for it)."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, or none for 0 classes."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def pool(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 1, 1)."""
        return F.adaptive_avg_pool2d(x, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H', W')."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pool, then the classifier unless `pre_logits`."""
        x = self.pool(x).flatten(1)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.forward_head(self.forward_features(x))


def cifar_cfg(pool_size: int) -> dict[str, Any]:
    """Timm's default configuration of a CIFAR net whose last map has this side."""
    return {
        "url": "",
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (pool_size, pool_size),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465),
        "std": (0.2023, 0.1994, 0.2010),  # the authors' (the true ones are 0.2470, 0.2435, 0.2616)
        "first_conv": "conv1",
        "classifier": "fc",
    }


def imagenet_cfg(side: int = 224, pool_size: int = 7, num_classes: int = 1000) -> dict[str, Any]:
    """The same of a net for ImageNet's pictures, or smaller ones of its kind.

    Args:
        side: of a picture, in pixels.
        pool_size: side of the last map.
        num_classes: of the last layer.
    """
    return cifar_cfg(pool_size) | {
        "num_classes": num_classes,
        "input_size": (3, side, side),
        "crop_pct": 0.875 if side == 224 else 1.0,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
    }
