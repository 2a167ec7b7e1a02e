"""ResNet-50 at four times its width, the large net of a self-supervised method, used as a teacher.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", NeurIPS 2020 (arXiv 2006.09882), Sec. 4. Every convolution is four times as wide, the stem too; keys are
torchvision's, as in the authors' files.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from lowbit.models.cifar_resnet_wide import DEPTHS, WIDTHS, WideCifarResNet
from lowbit.models.pooled import imagenet_cfg

default_cfgs = generate_default_cfgs({"resnet50_w4": imagenet_cfg()})


@register_model
def resnet50_w4(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """375,378,176 parameters and 8192 features without the classifier."""
    block, depths = DEPTHS[50]
    sizes = {"block": block, "depths": depths, "widths": tuple(4 * width for width in WIDTHS), "stem": 7}
    features = {"out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(
        WideCifarResNet, "resnet50_w4", pretrained, feature_cfg=features, **{"num_classes": 1000, **sizes, **kwargs}
    )
