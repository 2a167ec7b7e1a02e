"""Nets that timm knows: what is large in a file stays small with them.

`tiny_of_releases` has 1,438 weights, `tiny_slimmable` 3,882, and sub-networks of 8 and 16 channels.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

NAME, SLIMMABLE = "tiny_of_releases", "tiny_slimmable"
CONFIG = {"num_classes": 10, "input_size": (3, 8, 8), "pool_size": (2, 2), "first_conv": "conv1", "classifier": "fc"}
CONFIG |= {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
default_cfgs = generate_default_cfgs({NAME: CONFIG, SLIMMABLE: CONFIG})


class Tiny(nn.Module):
    """Three convolutions: (B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3, widths: tuple[int, int, int] = (4, 8, 12)) -> None:
        super().__init__()
        a, b, c = widths
        self.num_features = self.head_hidden_size = c
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(in_chans, a, 3, 1, 1, bias=False), nn.BatchNorm2d(a), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(a, b, 3, 2, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(b, c, 3, 2, 1, bias=False), nn.BatchNorm2d(c), nn.ReLU()
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        return self.relu3(self.bn3(self.conv3(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@register_model
def tiny_of_releases(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(Tiny, NAME, pretrained, **kwargs)


@register_model
def tiny_slimmable(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(Tiny, SLIMMABLE, pretrained, **{"widths": (8, 16, 16), **kwargs})
