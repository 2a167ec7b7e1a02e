"""ResNets for 32x32 pictures whose shortcuts have no parameters (option A).

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016 (arXiv 1512.03385), Sec. 4.2: where the
shape changes, the shortcut takes every second position and pads zero channels on both sides. As Lee, Kim, Ham, "Network
Quantization with Element-wise Gradient Scaling", CVPR 2021 (arXiv 2104.00903), have it, a batch norm `bn2` stands
between the pool and the classifier.

Deviations: their `linear` is `fc`; they average-pool 8x8, here the mean over all positions.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from lowbit.models.cifar_resnet import Block, CifarResNet
from lowbit.models.pooled import cifar_cfg


class PadShortcut(nn.Module):
    """(B, C, H, W) -> (B, out, H / 2, W / 2): every second position, zero channels on both sides."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.before = (out - channels) // 2
        self.after = out - channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """Subsample, then pad."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class PadCifarResNet(CifarResNet):
    """ResNet-(6n + 2), (B, in_chans, H, W) -> (B, num_classes); num_classes 0 leaves the 64 normalised features."""

    def __init__(self, depth: int, num_classes: int = 10, in_chans: int = 3) -> None:
        super().__init__(depth, num_classes, in_chans)
        self.bn2 = nn.BatchNorm1d(self.num_features)
        self.fc = self._modules.pop("fc")  # type: ignore[assignment]  # behind bn2, as it is run
        for block in self.modules():
            if isinstance(block, Block) and block.downsample is not None:
                block.downsample = PadShortcut(block.conv1.in_channels, block.conv1.out_channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pool, batch norm, then the classifier unless `pre_logits`."""
        x = self.bn2(self.pool(x).flatten(1))
        return x if pre_logits else self.fc(x)


default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}_pad": cifar_cfg(8) for depth in (20, 32)})


def _build(depth: int, pretrained: bool, **kwargs: Any) -> nn.Module:
    variant, stages = f"cifar_resnet{depth}_pad", {"out_indices": (0, 1, 2)}
    return build_model_with_cfg(PadCifarResNet, variant, pretrained, feature_cfg=stages, depth=depth, **kwargs)


@register_model
def cifar_resnet20_pad(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-20: 269,850 parameters."""
    return _build(20, pretrained, **kwargs)


@register_model
def cifar_resnet32_pad(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-32: 470,132 parameters at 100 classes."""
    return _build(32, pretrained, **kwargs)
