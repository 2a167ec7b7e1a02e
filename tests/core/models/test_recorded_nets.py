"""Keys, sizes and logits of nets against recorded ones; what their names and timm's services promise."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.models.create import create_model
from lowbit.models.surgery import of_kind

RESNET, VGG = {"linear.": "fc."}, {"conv2d.": "conv.", "classifier.": "fc.", "block": "layer"}
NETS: dict[str, tuple[str, str, dict[str, str], str, int]] = {
    "cifar_resnet20_pad": ("resnet20_fp", "resnet20.fp.logits", RESNET, "float32", 32),
    "cifar_resnet32_pad": ("resnet32_fp", "resnet32.fp.logits", RESNET, "float32", 32),
    "cifar_vgg8": ("vgg8_bn_fp", "vgg8_bn.fp.logits", VGG, "float32", 32),
    "cifar_vgg13": ("vgg13_bn_fp", "vgg13_bn.fp.logits", VGG, "float32", 32),
    "tiny_vgg11": ("tiny_vgg11_bn", "tiny.vgg11_bn.logits64", VGG, "float32", 64),
    "resnet18": ("tiny_resnet18_imagenet", "tiny.resnet18_imagenet.logits64", {}, "float32", 64),
    "tiny_mobilenetv2": ("tiny_mobilenet_v2", "tiny.mobilenet_v2.logits64", {}, "float32", 64),
}


@pytest.mark.parametrize("name", NETS)
def test_logits_and_sizes(learned_numbers: Any, name: str) -> None:
    which, logits, renamed, _, side = NETS[name]
    said = learned_numbers.json("keys")[which]
    with torch.device("meta"):
        net = create_model(name, num_classes=said["num_classes"])
    assert sum(p.numel() for p in net.parameters()) == said["n_params"]
    net = learned_numbers.fill_(net.to_empty(device="cpu"), which, renamed).eval()
    expected = learned_numbers["nets"][logits]
    with torch.inference_mode():
        found = net(learned_numbers.pictures((len(expected), 3, side, side)).float())
    assert float((found - expected).abs().max() / expected.abs().max()) < 1e-5


@pytest.mark.parametrize("name", ["cifar_resnet20_pad", "cifar_vgg8", "cifar_vgg13", "tiny_vgg11"])
def test_any_classes_and_timm_s_services(name: str) -> None:
    with torch.device("meta"):
        net, x = create_model(name, num_classes=0, in_chans=1).eval(), torch.empty(2, 1, 16, 16)
        assert net(x).shape == (2, net.num_features)
        net.reset_classifier(7)
        assert net(x).shape == (2, 7) and net.get_classifier().out_features == 7
        stages = create_model(name, features_only=True)(torch.empty(1, 3, 32, 32))
    info = [each["num_chs"] for each in net.feature_info]
    assert [y.shape[1] for y in stages] == info
    first = net.pretrained_cfg["first_conv"]
    assert all(isinstance(net.get_submodule(n), nn.Conv2d) for n in ([first] if isinstance(first, str) else first))


def test_initialisation_is_the_authors() -> None:
    torch.manual_seed(0)
    vgg = create_model("cifar_vgg8")
    assert abs(float(vgg.layer2[0].conv.weight.detach().std()) - (2 / (9 * 256)) ** 0.5) < 1e-3
    assert abs(float(vgg.fc.weight.detach().std()) - 0.01) < 1e-3 and not vgg.fc.bias.any()
    resnet = create_model("cifar_resnet20_pad")
    convs: dict[str, Tensor] = {n: m.weight for n, m in of_kind(resnet, nn.Conv2d).items()}
    last = convs["layer3.2.conv2"]
    assert abs(float(last.detach().std()) - (2 / (9 * 64)) ** 0.5) < 1e-3, "He-normal over the inputs"


def test_the_shortcut_takes_every_second_position_and_pads_both_sides() -> None:
    block = create_model("cifar_resnet20_pad").layer2[0]
    x = torch.randn(2, 16, 6, 6)
    y = block.downsample(x)
    assert y.shape == (2, 32, 3, 3) and torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any() and not y[:, 24:].any() and not list(block.downsample.parameters())
