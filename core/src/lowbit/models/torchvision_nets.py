"""MobileNet-V2, ShuffleNet-V2 x0.5 and SqueezeNet 1.0 for Tiny-ImageNet: torchvision's nets as timm models.

Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; Ma et al., "ShuffleNet V2:
Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018; Iandola et al., "SqueezeNet: AlexNet-level
accuracy with 50x fewer parameters", 2016 (arXiv 1602.07360). Layers, keys and initialisation are torchvision's, so
that its files, and those of programs that use it, are read as they are. SqueezeNet has no batch norm.

Deviation: a first layer for another number of channels than 3 is drawn as torch draws it.
"""

from typing import Any

import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn
from torchvision.models import MobileNetV2, ShuffleNetV2, SqueezeNet

from lowbit.models.pooled import imagenet_cfg
from lowbit.models.surgery import conv_like, replace_


class TorchvisionNet(nn.Module):
    """timm's interface around a net of torchvision, which stands behind it among the bases of a subclass.

    Args:
        num_classes: outputs of the last layer; 0 leaves the pooled features.
        in_chans: channels of a picture.
        arguments: of torchvision's class.
    """

    first: str  # name of the first convolution
    last: str  # and of the last layer
    num_classes: int
    num_features: int
    features: nn.Module
    classifier: nn.Module

    def __init__(self, num_classes: int = 200, in_chans: int = 3, **arguments: Any) -> None:
        super().__init__(num_classes=num_classes or 1, **arguments)
        head, stem = self.get_classifier(), self.get_submodule(self.first)
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = int(head.weight.shape[1])  # type: ignore[index]
        if num_classes == 0:
            self.reset_classifier(0)
        if in_chans != 3:
            like = conv_like(stem, in_channels=in_chans).to_empty(device=stem.weight.device)  # type: ignore[arg-type]
            like.reset_parameters()
            replace_(self, {self.first: like})

    def get_classifier(self) -> nn.Module:
        """The last layer (timm's name for it)."""
        return self.get_submodule(self.last)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer, or none for 0 classes."""
        self.num_classes = num_classes
        layer = self._classifier(num_classes) if num_classes else nn.Identity()
        replace_(self, {self.last: layer})

    def _classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.num_features, num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, num_features, H', W')."""
        return self.features(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pool, then the classifier unless `pre_logits`."""
        x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.forward_head(self.forward_features(x))


def _stages(*stages: tuple[str, int, int]) -> list[dict[str, Any]]:
    """What timm says of feature maps: module, channels, pixels of a picture per position."""
    return [{"module": name, "num_chs": channels, "reduction": reduction} for name, channels, reduction in stages]


class TinyMobileNetV2(TorchvisionNet, MobileNetV2):
    """As `TorchvisionNet`; the last layer is drawn as torchvision draws it."""

    first, last = "features.0.0", "classifier.1"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        stages = (("features.1", 16, 2), ("features.3", 24, 4), ("features.6", 32, 8), ("features.13", 96, 16))
        self.feature_info = _stages(*stages, ("features.17", 320, 32))

    def _classifier(self, num_classes: int) -> nn.Module:
        return _drawn(nn.Linear(self.num_features, num_classes))


class TinyShuffleNetV2(TorchvisionNet, ShuffleNetV2):
    """As `TorchvisionNet`, half as wide as the paper's net."""

    first, last = "conv1.0", "fc"
    conv1: nn.Module
    maxpool: nn.Module
    stage2: nn.Module
    stage3: nn.Module
    stage4: nn.Module
    conv5: nn.Module
    fc: nn.Module

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments, stages_repeats=[4, 8, 4], stages_out_channels=[24, 48, 96, 192, 1024])
        self.feature_info = _stages(("conv1", 24, 2), ("stage2", 48, 8), ("stage3", 96, 16), ("conv5", 1024, 32))

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, 1024, H / 32, W / 32)."""
        x = self.maxpool(self.conv1(x))
        return self.conv5(self.stage4(self.stage3(self.stage2(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Mean over all positions, then the classifier unless `pre_logits`."""
        x = x.mean([2, 3])
        return x if pre_logits else self.fc(x)


class TinySqueezeNet(TorchvisionNet, SqueezeNet):
    """As `TorchvisionNet`; the last layer is a 1x1 convolution, ReLU and the pool follow."""

    first, last = "features.0", "classifier.1"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        stages = (("features.1", 96, 2), ("features.5", 256, 4), ("features.10", 512, 8), ("features.12", 512, 16))
        self.feature_info = _stages(*stages)

    def _classifier(self, num_classes: int) -> nn.Module:
        return _drawn(nn.Conv2d(self.num_features, num_classes, 1))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The classifier and then the mean; with `pre_logits` the mean alone."""
        return F.adaptive_avg_pool2d(x, 1).flatten(1) if pre_logits else self.classifier(x).flatten(1)


def _drawn(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


NETS: dict[str, type[TorchvisionNet]] = {
    "tiny_mobilenetv2": TinyMobileNetV2,
    "tiny_shufflenetv2": TinyShuffleNetV2,
    "tiny_squeezenet": TinySqueezeNet,
}
default_cfgs = generate_default_cfgs(
    {
        name: {**imagenet_cfg(num_classes=200), "first_conv": kind.first, "classifier": kind.last}
        for name, kind in NETS.items()
    }
)


def _build(name: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    flat = name != "tiny_shufflenetv2"  # its stages are modules, the others' are numbers in one sequence
    stages = {"out_indices": tuple(range(5 if name == "tiny_mobilenetv2" else 4)), "flatten_sequential": flat}
    return build_model_with_cfg(NETS[name], name, pretrained, feature_cfg=stages, **kwargs)


@register_model
def tiny_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNet-V2: 2,480,072 parameters at 200 classes."""
    return _build("tiny_mobilenetv2", pretrained, **kwargs)


@register_model
def tiny_shufflenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ShuffleNet-V2 x0.5: 546,792 parameters at 200 classes."""
    return _build("tiny_shufflenetv2", pretrained, **kwargs)


@register_model
def tiny_squeezenet(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """SqueezeNet 1.0: 838,024 parameters at 200 classes."""
    return _build("tiny_squeezenet", pretrained, **kwargs)
