"""VGG-8 and 13 for 32x32 pictures and VGG-11 for Tiny-ImageNet, with batch norm and one linear layer.

Simonyan, Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015 (arXiv 1409.1556),
as Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), use them: five
stages, max-pooling after the first three alone, convolutions with bias, a global average pool before the classifier.

Deviations: the authors' `layer0.0.conv2d` is `layer0.0.conv`, their `classifier` is `fc`; they call VGG-11's stages
block0 to 4; their CIFAR nets pool once more where a picture has 64 pixels.
"""

import math
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.models.pooled import PooledNet, cifar_cfg

WIDTHS = (64, 128, 256, 512, 512)
POOLED = 3  # stages that max-pooling follows


class ConvBlock(nn.Module):
    """3x3 convolution with bias, batch norm, ReLU: (B, channels, H, W) -> (B, out, H, W)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1)
        self.bn = nn.BatchNorm2d(out)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """One after the other."""
        return self.relu(self.bn(self.conv(x)))


class Vgg(PooledNet):
    """(B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the 512 pooled features.

    Args:
        depths: convolutions of each of the five stages.
        num_classes: outputs of `fc`; 0 for none.
        in_chans: channels of a picture.
    """

    def __init__(self, depths: tuple[int, ...], num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = WIDTHS[-1]
        self.stages = [f"layer{number}" for number in range(len(depths))]
        self.feature_info, channels = [], in_chans
        for number, (name, depth, width) in enumerate(zip(self.stages, depths, WIDTHS, strict=True)):
            blocks = [ConvBlock(channels if block == 0 else width, width) for block in range(depth)]
            self.add_module(name, nn.Sequential(*blocks))
            channels = width
            self.feature_info.append({"num_chs": width, "reduction": 2 ** min(number, POOLED), "module": name})
        self.max_pool = nn.MaxPool2d(2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He-normal over the outputs
                nn.init.normal_(module.weight, std=math.sqrt(2 / (9 * module.out_channels)))
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """As the base's, drawn as the authors do."""
        super().reset_classifier(num_classes, global_pool)
        if num_classes:
            nn.init.normal_(self.fc.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.zeros_(self.fc.bias)  # type: ignore[arg-type]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 512, H / 8, W / 8)."""
        for number, name in enumerate(self.stages):
            x = self.get_submodule(name)(x)
            x = self.max_pool(x) if number < POOLED else x
        return x


DEPTHS = {"cifar_vgg8": (1, 1, 1, 1, 1), "cifar_vgg13": (2, 2, 2, 2, 2), "tiny_vgg11": (1, 1, 2, 2, 2)}
TINY = {
    "num_classes": 200,
    "input_size": (3, 224, 224),
    "pool_size": (28, 28),
    "crop_pct": 0.875,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
default_cfgs = generate_default_cfgs(
    {
        name: {
            **cifar_cfg(4),
            **(TINY if name == "tiny_vgg11" else {}),
            "first_conv": tuple(f"layer0.{block}.conv" for block in range(depths[0])),
        }
        for name, depths in DEPTHS.items()
    }
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    stages = {"out_indices": (0, 1, 2, 3, 4)}
    return build_model_with_cfg(Vgg, name, pretrained, feature_cfg=stages, depths=DEPTHS[name], **kwargs)


@register_model
def cifar_vgg8(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-8: 3,918,858 parameters at 10 classes."""
    return _build("cifar_vgg8", pretrained, **kwargs)


@register_model
def cifar_vgg13(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-13: 9,462,180 parameters at 100 classes."""
    return _build("cifar_vgg13", pretrained, **kwargs)


@register_model
def tiny_vgg11(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """VGG-11, three poolings alone: 9,328,584 parameters at 200 classes."""
    return _build("tiny_vgg11", pretrained, **kwargs)
