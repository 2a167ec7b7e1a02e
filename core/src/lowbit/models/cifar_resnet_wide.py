"""ResNet-18, 34, 50, 101 and 152 for 32x32 pictures: ImageNet's widths behind a 3x3 stem.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), Table 1, with a 3x3
stem of stride 1 and no max-pooling. Keys are timm's and torchvision's; default initialisation of torch, as the authors
have it (they do not zero the last batch norm of a branch).

Deviations: the authors average-pool 4x4; here the mean over all positions, which is the same for 32x32 pictures and
also runs on others. 10 classes by default, not 128.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.models.pooled import PooledNet, cifar_cfg

WIDTHS = (64, 128, 256, 512)


def conv(channels: int, out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """A size x size convolution that keeps the picture's size at stride 1, no bias."""
    return nn.Conv2d(channels, out, size, stride, padding=size // 2, bias=False)


def shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    """1x1 convolution and batch norm where the shape changes, else None."""
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(conv(channels, out, 1, stride), nn.BatchNorm2d(out))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (B, channels, H, W) -> (B, width, H / stride, W / stride)."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The branch plus the shortcut, then ReLU."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions: (B, channels, H, W) -> (B, 4 width, H / stride, W / stride)."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        out = width * self.expansion
        self.conv1 = conv(channels, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self.conv3 = conv(width, out, 1)
        self.bn3 = nn.BatchNorm2d(out)
        self.downsample = shortcut(channels, out, stride)
        self.relu3 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """The branch plus the shortcut, then ReLU."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.relu2(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu3(y + (x if self.downsample is None else self.downsample(x)))


class WideCifarResNet(PooledNet):
    """(B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the pooled features.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks of each stage.
        num_classes: outputs of `fc`; 0 for none.
        in_chans: channels of a picture.
        widths: channels of each stage, before the block's expansion; the first is the stem's, too.
        stem: 3, a 3x3 convolution of stride 1; 7, ImageNet's: 7x7 of stride 2 and 3x3 max-pooling of stride 2.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, ...],
        num_classes: int = 10,
        in_chans: int = 3,
        widths: tuple[int, ...] = WIDTHS,
        stem: int = 3,
    ) -> None:
        super().__init__()
        self.num_features = self.head_hidden_size = widths[-1] * block.expansion
        self.conv1 = conv(in_chans, widths[0], stem, 1 if stem == 3 else 2)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = None if stem == 3 else nn.MaxPool2d(3, 2, 1)
        self.stages = [f"layer{number}" for number in range(1, len(depths) + 1)]
        self.feature_info, channels = [], widths[0]
        for number, (name, depth, width) in enumerate(zip(self.stages, depths, widths, strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (depth - 1)
            blocks = []
            for stride in strides:
                blocks.append(block(channels, width, stride))
                channels = width * block.expansion
            self.add_module(name, nn.Sequential(*blocks))
            reduction = 2**number * (1 if stem == 3 else 4)
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": name})
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / 8, W / 8), with ImageNet's stem H / 32, W / 32."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = x if self.maxpool is None else self.maxpool(x)
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x

    def pool(self, x: Tensor) -> Tensor:
        """As the authors' program, whose last bits these are."""
        return F.avg_pool2d(x, x.shape[-2:])


DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}

default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": cifar_cfg(4) for depth in DEPTHS})


def _entry(depth: int) -> Callable[..., nn.Module]:
    """What timm calls for the net of a depth."""
    variant, stages = f"cifar_resnet{depth}", {"out_indices": (0, 1, 2, 3)}
    block, depths = DEPTHS[depth]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        own = {"block": block, "depths": depths, **kwargs}
        return build_model_with_cfg(WideCifarResNet, variant, pretrained, feature_cfg=stages, **own)

    build.__name__ = build.__qualname__ = variant
    build.__doc__ = f"ResNet-{depth} with a 3x3 stem."
    return build


for _depth in DEPTHS:
    globals()[f"cifar_resnet{_depth}"] = register_model(_entry(_depth))
