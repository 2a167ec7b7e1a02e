"""ResNets for 32x32 pictures with 1x1-convolution shortcuts.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), Sec. 4.2, with
projection shortcuts (option B). Depth 6n + 2: three stages of n blocks, 16-32-64 channels, 3x3 stem.

Names and keys of the weights are those of Yang, Duan, Chen, Li, "BSQ: Exploring Bit-Level Sparsity for Mixed-Precision
Neural Network Quantization", ICLR 2021 (arXiv 2102.10462), whose authors train these nets.

Deviations: the authors average-pool 8x8; here the mean over all positions, which is the same for 32x32 pictures and
also runs on others (the 8x8 digits).
"""

import math
from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.models.pooled import PooledNet, cifar_cfg


def conv3x3(channels: int, out: int, stride: int = 1) -> nn.Conv2d:
    """3x3 convolution, padding 1, no bias."""
    return nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """Two 3x3 convolutions around a shortcut; `relu1` and `relu2` are the activations that are quantized."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, out, stride)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu1 = nn.ReLU()
        self.conv2 = conv3x3(out, out)
        self.bn2 = nn.BatchNorm2d(out)
        self.downsample: nn.Module | None = None
        if stride != 1 or channels != out:
            shortcut = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(out))
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) -> (B, out, H / stride, W / stride)."""
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


class CifarResNet(PooledNet):
    """ResNet-(6n + 2): (B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the pooled features.

    `widths`: channels of the three stages; the first is the stem's, too.
    """

    def __init__(
        self, depth: int, num_classes: int = 10, in_chans: int = 3, widths: tuple[int, int, int] = (16, 32, 64)
    ) -> None:
        super().__init__()
        if depth % 6 != 2 or depth < 8:
            raise ValueError(f"depth {depth}: must be 6n + 2 (8, 14, 20, 32, ...)")
        first, second, third = widths
        self.num_features = self.head_hidden_size = third
        self.conv1 = conv3x3(in_chans, first)
        self.bn1 = nn.BatchNorm2d(first)
        self.relu = nn.ReLU()
        n = depth // 6
        self.layer1 = self._stage(n, first, first, 1)
        self.layer2 = self._stage(n, first, second, 2)
        self.layer3 = self._stage(n, second, third, 2)
        self.feature_info = [
            {"num_chs": channels, "reduction": 2**i, "module": f"layer{i + 1}"} for i, channels in enumerate(widths)
        ]
        self.reset_classifier(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He-normal over the outputs
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    @staticmethod
    def _stage(n: int, channels: int, out: int, stride: int) -> nn.Sequential:
        return nn.Sequential(Block(channels, out, stride), *(Block(out, out, 1) for _ in range(n - 1)))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / 4, W / 4)."""
        x = self.relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x)))


DEPTHS = tuple(range(8, 111, 6))  # 6n + 2
default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}_1x1": cifar_cfg(8) for depth in DEPTHS})


def _entry(depth: int) -> Callable[..., nn.Module]:
    """What timm calls for the net of a depth."""
    variant, stages = f"cifar_resnet{depth}_1x1", {"out_indices": (0, 1, 2)}

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(CifarResNet, variant, pretrained, feature_cfg=stages, depth=depth, **kwargs)

    build.__name__ = build.__qualname__ = variant
    build.__doc__ = f"ResNet-{depth}."
    return build


for _depth in DEPTHS:
    globals()[f"cifar_resnet{_depth}_1x1"] = register_model(_entry(_depth))
