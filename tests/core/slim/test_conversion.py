"""Conversion of nets: which, what runs at a width, sub-networks as ordinary nets, widths by layer."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.layers import SplitBatchNorm2d
from timm.models.efficientnet import EfficientNet, decode_arch_def
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.cifar_resnet_wide import BasicBlock, Bottleneck, WideCifarResNet
from lowbit.models.create import create_model
from lowbit.models.heads import predictor
from lowbit.models.surgery import replace_
from lowbit.quant.layers import quantized_layers, to_plain_
from lowbit.slim.conversion import slim_, slim_inputs_
from lowbit.slim.layers import SlimConv2d, SlimLinear, at_width, set_width_, slimmable_layers
from lowbit.slim.norms import SlimBatchNorm2d
from lowbit.train.bn_statistics import reestimate_batchnorm_

WIDTHS = (0.25, 0.4, 0.75, 1.0)
X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def tiny(block: Any = BasicBlock, widths: tuple[int, ...] = (16, 32), classes: int = 5) -> WideCifarResNet:
    torch.manual_seed(0)
    return WideCifarResNet(block, (1,) * len(widths), widths=widths, num_classes=classes)


def tiny_mobilenet(classes: int = 5) -> EfficientNet:
    """timm's MobileNet-V2 with four blocks."""
    torch.manual_seed(0)
    blocks = decode_arch_def([["ds_r1_k3_s1_c16"], ["ir_r2_k3_s2_e6_c24"], ["ir_r1_k3_s1_e6_c32"]])
    return EfficientNet(blocks, classes, act_layer=nn.ReLU6)


@pytest.mark.parametrize("name", ["tiny", "bottleneck", "mobilenet", "resnet18d", "resnext50_32x4d", "seresnet18"])
def test_a_sub_network_equals_the_ordinary_net(name: str) -> None:
    """Running statistics are those of the width; float64 to 1e-12, float32 to 1e-6."""
    own = {"tiny": tiny, "bottleneck": lambda: tiny(Bottleneck), "mobilenet": tiny_mobilenet}
    size = 8 if name in own else 32
    net: Any = own[name]() if name in own else create_model(name, num_classes=5, layers=(1, 1, 1, 1))
    keys, parameters = list(net.state_dict()), list(net.parameters())
    assert slim_(net, (3, size, size)) is net
    assert list(net.state_dict()) == keys and all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    x = torch.randn(4, 3, size, size, dtype=torch.float64)
    net.double()
    for width in WIDTHS if name == "tiny" else (0.25, 0.6):
        with at_width(net, width):
            reestimate_batchnorm_(net, [Batch((x,), torch.arange(4), None, 1.0)])
            y = net.eval()(x)
            plain = to_plain_(deepcopy(net))
        assert not list(quantized_layers(plain)) and list(plain.state_dict()) == keys
        torch.testing.assert_close(plain(x), y, rtol=1e-12, atol=1e-12)
        single = deepcopy(net).float()
        with at_width(single, width):
            torch.testing.assert_close(plain.float()(x.float()), single(x.float()), rtol=1e-6, atol=1e-6)
        narrower = sum(p.numel() for p in plain.parameters()) < sum(p.numel() for p in parameters)
        assert narrower == (width < 1)


def test_timm_s_net_computes_at_full_width_as_before() -> None:
    net: Any = tiny_mobilenet().eval()
    x = torch.randn(2, 3, 32, 32)
    before = net(x)
    assert torch.equal(slim_(net)(x), before)
    kinds = {name: type(module) for name, module in net.named_modules()}
    assert kinds["conv_head"] is SlimConv2d and net.conv_head.ratios == (1, 0) and net.conv_stem.ratios == (0, 1)
    assert kinds["bn2"] is not SlimBatchNorm2d and kinds["classifier"] is nn.Linear  # 1280 features at every width
    assert net.blocks[1][0].conv_pw.ratios == (1, 6) and net.blocks[1][0].conv_pwl.ratios == (6, 1)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("resnet101", "wide_resnet50_2", "mobilenetv2_100")]


@pytest.mark.parametrize("name", ["resnet34", "mobilenetv2_050", "cifar_resnet20_1x1", *SLOW])
def test_nets_that_can_be_slimmed(name: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    assert len(slimmable_layers(slim_(net))) > 40


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("densenet121", "puts channels together in another way"),
        ("res2net50_26w_4s", "puts channels together in another way"),
        ("convnext_atto", "has weights for all channels"),
        ("resnet50_gn", "has weights for all channels"),
        ("resnetblur50", "has weights for all channels"),
        ("vit_tiny_patch16_224", "puts channels together in another way"),
    ],
)
def test_nets_that_cannot_be_slimmed_are_refused_and_left(name: str, why: str) -> None:
    with torch.device("meta"):
        net = create_model(name)
    kinds = [type(module) for module in net.modules()]
    with pytest.raises(InputError, match=f"{name} cannot be made slimmable: .*{why}") as caught:
        slim_(net)
    assert "\n" not in str(caught.value)
    assert [type(module) for module in net.modules()] == kinds


def test_a_layer_that_is_not_ordinary_is_named() -> None:
    net: Any = tiny()
    net.layer2[0].conv2 = parametrizations.weight_norm(net.layer2[0].conv2)
    with pytest.raises(InputError, match=r"cannot be made slimmable: layer2\.0\.conv2: .*no parameter of its own"):
        slim_(net, (3, 8, 8))
    net = tiny()
    net.bn1 = SplitBatchNorm2d(16)
    with pytest.raises(InputError, match=r"bn1: SplitBatchNorm2d computes batch norm in a way of its own"):
        slim_(net, (3, 8, 8))


class Odd(nn.Module):
    """Adds a constant map of all channels, which a sub-network has not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(x + x.new_ones(1, 32, 1, 1))


def test_layers_that_do_not_fit_at_a_width_are_found_and_the_net_is_left() -> None:
    net = Odd()
    with pytest.raises(InputError, match=r"Odd cannot be made slimmable: at width 0\.15 its layers do not fit"):
        slim_(net, (3, 8, 8))
    assert type(net.conv1) is nn.Conv2d


def test_a_projector_slims_its_first_layer_alone() -> None:
    net = tiny(classes=0)
    net.fc = predictor(32, 6)
    slim_(net, (3, 8, 8))
    kinds = [type(module) for module in net.fc]
    assert kinds == [SlimLinear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    with at_width(net, 0.25):
        assert net(X).shape == (4, 32)


def test_the_width_goes_back_also_after_an_error() -> None:
    net = slim_(tiny(), (3, 8, 8))
    conv = net.layer1[0].conv1
    set_width_(net, 0.75)
    with pytest.raises(ZeroDivisionError), at_width(net, 0.5):
        assert conv.active_out == 8
        raise ZeroDivisionError
    assert conv.active_out == 16 and conv.width == (0.75, 0.75)  # 12 rounds to 16: 8 is less than 0.9 of it
    with pytest.raises(InputError, match=r"width 1\.5 is not in"):
        set_width_(net, 1.5)
    assert conv.width == (0.75, 0.75)


def by_layer(net: nn.Module, width: float, **others: float) -> dict[str, float]:
    names = [name for name, layer in slimmable_layers(net).items() if layer.groups_of[1]]
    return {name: others.get(name.replace(".", "_"), width) for name in names}


def test_widths_by_layer() -> None:
    """The inside of a block may have another width than what blocks add to each other."""
    net = slim_(tiny(), (3, 8, 8)).eval()
    uniform = by_layer(net, 0.5)
    with at_width(net, 0.5):
        wanted = net(X)
    with at_width(net, uniform):
        assert torch.equal(net(X), wanted)
    inner = by_layer(net, 1.0, layer2_0_conv1=0.25)
    with at_width(net, inner):
        y, plain = net(X), to_plain_(deepcopy(net))
        block: Any = plain.layer2[0]
        assert [block.conv1.out_channels, block.bn1.num_features, block.conv2.in_channels] == [8, 8, 8]
        assert block.conv2.out_channels == 32 == block.downsample[0].out_channels
        torch.testing.assert_close(plain(X), y)
    assert net.layer2[0].conv1.active_out == 32


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layer2.0.conv2": 0.5}, "layer2.0.conv2 and layer2.0.downsample.0 must have the same number of channels"),
        ({"layer1.0.conv2": 0.5}, "conv1 and layer1.0.conv2 must have the same number of channels.*16 and 8"),
        ({"layer1.0.conv1": None}, r"leave out layer1\.0\.conv1"),
        (
            {"layer1.0.conv": 0.5},
            r"name 'layer1\.0\.conv', which has no width of its own; did you mean layer1\.0\.conv",
        ),
        ({"layer1.0.bn1": 0.5}, r"name 'layer1\.0\.bn1', which has no width of its own"),
        ({"layer1.0.conv1": 0.0}, r"width 0\.0 is not in \(0, 1\]"),
    ],
)
def test_widths_by_layer_that_do_not_agree(change: dict[str, float | None], why: str) -> None:
    net = slim_(tiny(), (3, 8, 8))
    widths = {name: width for name, width in {**by_layer(net, 1.0), **change}.items() if width is not None}
    with pytest.raises(InputError, match=why) as caught:
        set_width_(net, widths)
    assert "\n" not in str(caught.value)
    assert {layer.width for layer in slimmable_layers(net).values()} == {(1.0, 1.0)}


def test_unused_channels_move_by_momentum_and_decay_as_by_hand() -> None:
    """Two SGD steps, at widths 1 and 0.5; in the second the gradient of what does not run is zero, not None."""
    torch.manual_seed(1)
    conv = SlimConv2d(nn.Conv2d(16, 16, 1, bias=False), (False, True))
    start = conv.weight.detach().clone()
    rate, momentum, decay = 0.1, 0.9, 0.01
    optimizer = torch.optim.SGD(conv.parameters(), rate, momentum, weight_decay=decay)
    x = torch.randn(2, 16, 1, 1)
    gradients = []
    for width in (1.0, 0.5):
        with at_width(conv, width):
            optimizer.zero_grad()
            conv(x).square().sum().backward()
            gradients.append(conv.weight.grad.clone())
            optimizer.step()
    assert not gradients[1][8:].any() and bool(gradients[1][:8].any())
    v1 = gradients[0] + decay * start
    p1 = start - rate * v1
    v2 = momentum * v1 + gradients[1] + decay * p1
    torch.testing.assert_close(conv.weight.detach(), p1 - rate * v2)
    unused = p1[8:] - rate * (momentum * (gradients[0][8:] + decay * start[8:]) + decay * p1[8:])
    torch.testing.assert_close(conv.weight.detach()[8:], unused)


@pytest.mark.parametrize("arch", ["cifar_resnet8_1x1", "cifar_mobilenetv2"])
def test_a_packed_sub_network(tmp_path: Path, arch: str) -> None:
    net = slim_(create_model(arch, num_classes=4)).eval()
    with at_width(net, 0.5):
        written = save_packed(net, tmp_path / "net.lowbit", {"arch": arch, "args": {"num_classes": 4}})
        plain = to_plain_(deepcopy(net))
        wanted = net(X)
    loaded = load_packed(tmp_path / "net.lowbit")
    assert torch.equal(loaded(X), plain(X))
    torch.testing.assert_close(loaded(X), wanted)
    bare = len(safetensors.torch.save({k: v.contiguous() for k, v in plain.state_dict().items()}))
    assert written <= 1.05 * bare, (written, bare)


@pytest.fixture(scope="module")
def vit() -> Any:
    torch.manual_seed(0)
    return slim_inputs_(create_model("vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2)).double().eval()


@pytest.mark.parametrize("width", [0.25, 0.7, 1.0])
def test_features_of_a_vision_transformer_equal_a_forward_sliced_by_hand(vit: Any, width: float) -> None:
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    inputs = {0.25: (48, 192), 0.7: (136, 536), 1.0: (192, 768)}[width]

    def cut(layer: nn.Linear, x: Tensor) -> Tensor:
        c = inputs[0] if layer.in_features == 192 else inputs[1]
        return x[..., :c] @ layer.weight[:, :c].T + layer.bias

    with torch.no_grad():
        tokens = torch.cat([vit.cls_token.expand(2, -1, -1), vit.patch_embed(x)], 1) + vit.pos_embed
        for block in vit.blocks:
            qkv = cut(block.attn.qkv, block.norm1(tokens)).reshape(2, -1, 3, 3, 64).permute(2, 0, 3, 1, 4)
            scores = (qkv[0] @ qkv[1].transpose(-2, -1) / 8).softmax(-1)
            tokens = tokens + cut(block.attn.proj, (scores @ qkv[2]).transpose(1, 2).reshape(2, -1, 192))
            tokens = tokens + cut(block.mlp.fc2, nn.functional.gelu(cut(block.mlp.fc1, block.norm2(tokens))))
        with at_width(vit, width):
            torch.testing.assert_close(vit.forward_features(x), vit.norm(tokens), rtol=1e-10, atol=1e-10)
            plain = to_plain_(deepcopy(vit))
            assert torch.equal(plain(x), vit(x)) and plain.blocks[0].mlp.fc2.in_features == inputs[1]


def test_a_slimmed_vision_transformer_is_not_packed(vit: Any, tmp_path: Path) -> None:
    recipe = {"arch": "vit_tiny_patch16_224", "args": {"num_classes": 3, "img_size": 32}}
    with at_width(vit, 0.5), pytest.raises(InputError, match=r"runs on a part of its inputs.* no export"):
        save_packed(vit, tmp_path / "net.lowbit", recipe)
    assert not list(tmp_path.iterdir())


def test_what_is_no_vision_transformer() -> None:
    with pytest.raises(InputError, match="cifar_resnet18 is no vision transformer"):
        slim_inputs_(create_model("cifar_resnet18"))
    net: Any = nn.Sequential()
    net.blocks = nn.Sequential(nn.MultiheadAttention(8, 2))
    with pytest.raises(InputError, match="Sequential cannot be made slimmable"):
        slim_inputs_(replace_(net, {}))
