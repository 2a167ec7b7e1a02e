"""ReActNet-A, a MobileNet-V1 shaped net for binary weights and activations.

Liu, Shen, Savvides, Cheng, "ReActNet: Towards Precise Binary Neural Network with Generalized Activation Functions",
ECCV 2020 (arXiv 2003.03488). As created it is real-valued; `lowbit.quant.binary.binarize_` makes all convolutions but
the stem's binary. Learnable shifts stand before each sign and around each PReLU.

Names of the weights are those of the authors' S2-BNN (CVPR 2021), whose blocks also hold the point-wise convolutions
that they do not use: `binary_pw` where the width doubles, `binary_pw_down*` where it does not. Here they do not exist.

Deviations: fresh weights are torch's own, of both signs (theirs are all positive). Variants for pictures of 64 and 32
pixels, whose first one or two strides are 1, so that their last map has 4x4 positions, too.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.pooled import PooledNet, cifar_cfg, imagenet_cfg

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)


class Shift(nn.Module):
    """A learnable number for each channel, added: (B, C, H, W) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """The shifted input."""
        return x + self.bias


class Stem(nn.Module):
    """3x3 convolution and batch norm, always real: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """No activation follows."""
        return self.bn1(self.conv1(x))


class Block(nn.Module):
    """A 3x3 and a 1x1 convolution, each with a shortcut: (B, channels, H, W) -> (B, out, H / stride, W / stride).

    Args:
        channels: in.
        out: `channels`, or twice as many: two 1x1 convolutions, whose outputs are concatenated.
        stride: 1 or 2; with 2 the shortcut is the mean of 2x2 positions, so H and W have to be even.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        if out not in (channels, 2 * channels):
            raise ValueError(f"{channels} to {out} channels: a block keeps or doubles them")
        self.stride, self.doubles = stride, out != channels
        self.move11 = Shift(channels)
        self.binary_3x3 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.move12 = Shift(channels)
        self.prelu1 = nn.PReLU(channels)
        self.move13 = Shift(channels)
        self.move21 = Shift(channels)
        if self.doubles:
            self.binary_pw_down1 = nn.Conv2d(channels, channels, 1, bias=False)
            self.binary_pw_down2 = nn.Conv2d(channels, channels, 1, bias=False)
            self.bn2_1 = nn.BatchNorm2d(channels)
            self.bn2_2 = nn.BatchNorm2d(channels)
        else:
            self.binary_pw = nn.Conv2d(channels, out, 1, bias=False)
            self.bn2 = nn.BatchNorm2d(out)
        self.move22 = Shift(out)
        self.prelu2 = nn.PReLU(out)
        self.move23 = Shift(out)

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = x if self.stride == 1 else F.avg_pool2d(x, 2)
        y = shortcut + self.bn1(self.binary_3x3(self.move11(x)))
        y = self.move13(self.prelu1(self.move12(y)))
        z = self.move21(y)
        if self.doubles:
            z = torch.cat([self.bn2_1(self.binary_pw_down1(z)) + y, self.bn2_2(self.binary_pw_down2(z)) + y], 1)
        else:
            z = self.bn2(self.binary_pw(z)) + y
        return self.move23(self.prelu2(self.move22(z)))


class ReActNet(PooledNet):
    """(B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the pooled features.

    Args:
        num_classes: outputs of `fc`; 0 for none.
        in_chans: channels of a picture.
        channels: of the stem and of each block. The stem's stride is 2, and a block's where its width doubles, but not
            the first block's.
        unstrided: so many of the first strides are 1 instead.

    Attributes:
        reduction: product of the strides; sides of pictures are multiples of it.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, channels: Sequence[int] = CHANNELS, unstrided: int = 0
    ) -> None:
        super().__init__()
        pairs = list(pairwise(channels))
        strides = [2, *(2 if number and out != width else 1 for number, (width, out) in enumerate(pairs))]
        for number in [i for i, stride in enumerate(strides) if stride == 2][:unstrided]:
            strides[number] = 1
        blocks = [Block(*pair, stride) for pair, stride in zip(pairs, strides[1:], strict=True)]
        self.feature = nn.Sequential(Stem(in_chans, channels[0], strides[0]), *blocks)
        self.reduction, self.feature_info = 1, []
        for number, (width, stride) in enumerate(zip(channels, strides, strict=True)):
            self.reduction *= stride
            if number + 1 == len(channels) or strides[number + 1] == 2:
                info = {"num_chs": width, "reduction": self.reduction, "module": f"feature.{number}"}
                self.feature_info.append(info)
        self.num_features = self.head_hidden_size = channels[-1]
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / reduction, W / reduction).

        Raises:
            InputError: a side that is no multiple of `reduction`.
        """
        height, width = x.shape[-2:]
        if height % self.reduction or width % self.reduction:
            raise InputError(
                f"pictures of {height}x{width} pixels: this ReActNet takes multiples of {self.reduction}: change their "
                "size, or use another net"
            )
        return self.feature(x)


_FIRST = {"first_conv": "feature.0.conv1"}
default_cfgs = generate_default_cfgs(
    {
        "reactnet_a": imagenet_cfg() | _FIRST,
        "reactnet_a_64": imagenet_cfg(64, 4, 200) | _FIRST,
        "reactnet_a_32": cifar_cfg(4) | _FIRST,
    }
)


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    features = {"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True}
    return build_model_with_cfg(ReActNet, variant, pretrained, feature_cfg=features, **kwargs)


@register_model
def reactnet_a(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ReActNet-A for 224 pixels: 29,343,592 parameters, of which 28,253,184 become binary."""
    return _build("reactnet_a", pretrained, **kwargs)


@register_model
def reactnet_a_64(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ReActNet-A whose stem has stride 1."""
    return _build("reactnet_a_64", pretrained, **{"num_classes": 200, "unstrided": 1, **kwargs})


@register_model
def reactnet_a_32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ReActNet-A whose stem and second block have stride 1."""
    return _build("reactnet_a_32", pretrained, **{"num_classes": 10, "unstrided": 2, **kwargs})
