"""MobileNet-V2 for 32x32 pictures: timm's net, whose stem and second stage have stride 1.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, Table 2; the strides are those of
Cao, Sun, Zhou (CVPR 2023). Keys are those of timm's `mobilenetv2_100`; so are its layers, and their initialisation.
"""

from functools import partial
from typing import Any

from timm.layers import get_act_layer
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientnet import EfficientNet, decode_arch_def, round_channels
from torch import nn

from lowbit.models.pooled import cifar_cfg

BLOCKS = ("ds_r1_k3_s1_c16", "ir_r2_k3_s1_e6_c24", "ir_r3_k3_s2_e6_c32", "ir_r4_k3_s2_e6_c64", "ir_r3_k3_s1_e6_c96")
LAST = ("ir_r3_k3_s2_e6_c160", "ir_r1_k3_s1_e6_c320")

default_cfgs = generate_default_cfgs(
    {"cifar_mobilenetv2": cifar_cfg(4) | {"first_conv": "conv_stem", "classifier": "classifier"}}
)


class CifarMobileNet(EfficientNet):
    """(B, in_chans, H, W) -> (B, num_classes); arguments of timm's EfficientNet.

    `channel_multiplier`: of all layers but the last 1x1 convolution, as in timm's `mobilenetv2_050`.
    """

    def __init__(self, num_classes: int = 10, channel_multiplier: float = 1.0, **arguments: Any) -> None:
        super().__init__(
            decode_arch_def([[block] for block in (*BLOCKS, *LAST)]),
            num_classes=num_classes,
            act_layer=get_act_layer("relu6"),
            norm_layer=nn.BatchNorm2d,
            round_chs_fn=partial(round_channels, multiplier=channel_multiplier),
            **arguments,
        )
        self.conv_stem.stride = (1, 1)
        for stage in self.feature_info:
            stage["reduction"] //= 2


@register_model
def cifar_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """2,223,872 parameters without the classifier."""
    stages = {"out_indices": (0, 1, 2, 3), "flatten_sequential": True}
    return build_model_with_cfg(CifarMobileNet, "cifar_mobilenetv2", pretrained, feature_cfg=stages, **kwargs)
