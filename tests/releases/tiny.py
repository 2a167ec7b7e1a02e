"""A net of 1,438 weights that timm knows as `tiny_of_releases`: what is large in a file stays small with it."""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

NAME = "tiny_of_releases"
CONFIG = {"num_classes": 10, "input_size": (3, 8, 8), "pool_size": (2, 2), "first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs({NAME: {**CONFIG, "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}})


class Tiny(nn.Module):
    """Three convolutions of 4, 8 and 12 channels: (B, 3, H, W) -> (B, num_classes)."""

    def __init__(self, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = 12
        self.conv1, self.bn1, self.relu1 = nn.Conv2d(in_chans, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()
        self.conv2, self.bn2, self.relu2 = nn.Conv2d(4, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()
        self.conv3, self.bn3, self.relu3 = nn.Conv2d(8, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        self.reset_classifier(num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        self.num_classes = num_classes
        self.fc = nn.Linear(12, num_classes) if num_classes else nn.Identity()

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
