"""Nets of torchvision as timm models: the same numbers, timm's services, learned quantizers through cost and export."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision import models

from lowbit.cost import cost
from lowbit.export.packed import load_packed, save_packed
from lowbit.export.program import save_program
from lowbit.models.create import create_model
from lowbit.quant.initialize import initialize_
from lowbit.quant.layers import quantized_layers
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points, quantize_learned_

NETS: dict[str, tuple[Callable[..., nn.Module], int, int]] = {  # torchvision's, parameters, quantized layers
    "tiny_mobilenetv2": (models.mobilenet_v2, 2_480_072, 51),
    "tiny_shufflenetv2": (models.shufflenet_v2_x0_5, 546_792, 55),
    "tiny_squeezenet": (models.squeezenet1_0, 838_024, 24),
}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NETS)
def test_the_same_net(name: str) -> None:
    made, parameters, points = NETS[name]
    torch.manual_seed(0)
    ours = create_model(name).double().eval()
    torch.manual_seed(0)
    theirs = made(num_classes=200).double().eval()
    assert sum(p.numel() for p in ours.parameters()) == parameters and len(layer_points(ours)) == points
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(*pair) for pair in zip(ours.parameters(), theirs.parameters(), strict=True))
    with torch.no_grad():
        assert torch.equal(ours(X.double()), theirs(X.double()))
    first = ours.pretrained_cfg["first_conv"]
    assert len(layer_points(ours, ["*"], [first])) == points + 1, "with the last layer, as the authors' SqueezeNet"


@pytest.mark.parametrize("name", NETS)
def test_any_classes_channels_and_timm_s_services(name: str) -> None:
    with torch.device("meta"):
        net, x = create_model(name, num_classes=0, in_chans=1).eval(), torch.empty(2, 1, 32, 32)
        assert net(x).shape == (2, net.num_features)
        net.reset_classifier(7)
        assert net(x).shape == (2, 7) and net.num_classes == 7
        assert net.forward_head(net.forward_features(x), pre_logits=True).shape == (2, net.num_features)
        stages = create_model(name, features_only=True)
        found = stages(torch.empty(1, 3, 256, 256))
    assert [y.shape[1] for y in found] == stages.feature_info.channels()
    sides = [256 / reduction for reduction in stages.feature_info.reduction()]
    assert [y.shape[2] for y in found] == pytest.approx(sides, abs=3), "torchvision's SqueezeNet pads nothing"


def test_a_new_classifier_and_first_layer_are_drawn() -> None:
    torch.manual_seed(0)
    for name in ("tiny_mobilenetv2", "tiny_squeezenet"):
        net = create_model(name, in_chans=4)
        net.reset_classifier(30)
        last = net.get_classifier()
        assert abs(float(last.weight.detach().std()) - 0.01) < 1e-3 and not last.bias.any()
        assert net.get_submodule(net.first).weight.shape[1] == 4 and net.get_submodule(net.first).weight.any()


@pytest.mark.parametrize("name", NETS)
def test_quantized_counted_and_packed(name: str, tmp_path: Path) -> None:
    """Codes at 4 bits in all layers but the ends; a packed file of that size, which computes the same."""
    torch.manual_seed(0)
    net, four, count = create_model(name, num_classes=5), LearnedConfig("lsq", 4), NETS[name][2]
    quantize_learned_(net, layer_points(net), lambda layer: (four, four))
    initialize_(net.train(), [X]).eval()
    found = cost(net, (3, 32, 32))
    layers = [layer for layer in found.layers if layer.macs]
    assert sum(layer.bits == layer.input_bits == 4 for layer in layers) == count == len(layers) - 2
    assert found.parameters == sum(p.numel() for p in create_model(name, num_classes=5).parameters())
    with torch.no_grad():
        expected = net(X)
        size = save_packed(net, tmp_path / "net.safetensors", {"arch": name, "args": {"num_classes": 5}})
        packed = load_packed(tmp_path / "net.safetensors")
        torch.testing.assert_close(packed(X), expected)
        assert len(dict(quantized_layers(net))) == count and size < 1.25 * found.bytes


@pytest.mark.heavy
def test_channels_are_shuffled_by_a_program(tmp_path: Path) -> None:
    """For any number of pictures, which the shuffle's shape depends on."""
    net = create_model("tiny_shufflenetv2", num_classes=5).eval()
    save_program(net, tmp_path / "net.pt2", (3, 32, 32), {})
    program, x = torch.export.load(tmp_path / "net.pt2").module(), torch.cat((X, X.flip(3), X.flip(2)))
    with torch.no_grad():
        torch.testing.assert_close(program(x), net(x))
