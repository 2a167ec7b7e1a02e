"""ResNet-18 whose 3x3 convolutions are to be binary: Bi-Real and XNOR.

Liu, Wu, Luo, Yang, Liu, Cheng, "Bi-Real Net: Enhancing the Performance of 1-bit CNNs with Improved Representational
Capability and Advanced Training Algorithm", ECCV 2018 (arXiv 1808.00278): a shortcut around each convolution.
Rastegari, Ordonez, Redmon, Farhadi, "XNOR-Net", ECCV 2016 (arXiv 1603.05279), with a shortcut around each block; as
baselines of self-supervised binary nets both are clip -> convolution -> batch norm -> + shortcut, where
`lowbit.quant.binary.binarize_` adds the sign behind the clip to [-1, 1]. The clip is what the real-valued net has for
an activation function (Bi-Real Net's pre-training); under the sign neither output nor gradient depends on it.

Stem 7x7 of stride 2, batch norm, max-pool, without ReLU, behind which every sign would be +1. Where the shape changes,
the shortcut is a 2x2 mean, a 1x1 convolution and batch norm, and stays real. Keys are torchvision's, but for the number
of the convolution in `downsample`.

Deviation: the 2x2 mean rounds odd sides up, as the convolution beside it does, so that any size of pictures runs.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.models.cifar_resnet_wide import WIDTHS, conv
from lowbit.models.pooled import PooledNet, imagenet_cfg


class Block(nn.Module):
    """Two 3x3 convolutions: (B, channels, H, W) -> (B, out, H / stride, W / stride).

    Args:
        channels: in.
        out: of both convolutions.
        stride: of the first.
        around_each: whether there is a shortcut around each convolution, or one around both.
    """

    stays_real = ("downsample",)

    def __init__(self, channels: int, out: int, stride: int, around_each: bool) -> None:
        super().__init__()
        self.around_each = around_each
        self.act1, self.act2 = nn.Hardtanh(), nn.Hardtanh()
        self.conv1, self.conv2 = conv(channels, out, 3, stride), conv(out, out, 3)
        self.bn1, self.bn2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)
        self.downsample = None
        if stride != 1 or channels != out:
            mean = nn.AvgPool2d(stride, ceil_mode=True, count_include_pad=False)
            self.downsample = nn.Sequential(mean, conv(channels, out, 1), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.bn1(self.conv1(self.act1(x)))
        if self.around_each:
            y = shortcut = y + shortcut
        return self.bn2(self.conv2(self.act2(y))) + shortcut


class XnorResNet(PooledNet):
    """(B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the pooled features.

    Args:
        around_each: see `Block`.
        num_classes: outputs of `fc`; 0 for none.
        in_chans: channels of a picture.
        widths: channels of each stage of two blocks; the first is the stem's, too.
    """

    def __init__(
        self, around_each: bool, num_classes: int = 1000, in_chans: int = 3, widths: tuple[int, ...] = WIDTHS
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_chans, widths[0], 7, 2)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.stages = [f"layer{number}" for number in range(1, len(widths) + 1)]
        self.feature_info, channels = [], widths[0]
        for number, (name, width) in enumerate(zip(self.stages, widths, strict=True)):
            first = Block(channels, width, 1 if number == 0 else 2, around_each)
            self.add_module(name, nn.Sequential(first, Block(width, width, 1, around_each)))
            self.feature_info.append({"num_chs": width, "reduction": 4 * 2**number, "module": name})
            channels = width
        self.num_features = self.head_hidden_size = channels
        self.reset_classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H / 32, W / 32)."""
        x = self.maxpool(self.bn1(self.conv1(x)))
        for name in self.stages:
            x = self.get_submodule(name)(x)
        return x


default_cfgs = generate_default_cfgs({f"{name}_resnet18": imagenet_cfg() for name in ("bireal", "xnor")})


def _build(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    features = {"out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(XnorResNet, variant, pretrained, feature_cfg=features, **kwargs)


@register_model
def bireal_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A shortcut around each convolution: 11,689,512 parameters, of which 10,985,472 become binary."""
    return _build("bireal_resnet18", pretrained, around_each=True, **kwargs)


@register_model
def xnor_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A shortcut around each block: the same parameters."""
    return _build("xnor_resnet18", pretrained, around_each=False, **kwargs)
