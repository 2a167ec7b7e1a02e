"""The bit policy: derived from a net, read from a table, overridden by names."""

import logging

import pytest
import torch
from timm.layers import create_act_layer, get_act_layer
from timm.layers.create_act import _ACT_LAYER_DEFAULT, _ACT_LAYER_ME
from torch import nn

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.quant.activations import FUNCTIONS
from lowbit.quant.places import GATES, function_of
from ssql.bit_policy import BitPolicy, derive_policy, effective, short


def policy_of(arch: str, **arguments: object) -> BitPolicy:
    return derive_policy(create_model(arch, num_classes=10), (3, 32, 32), **arguments)  # type: ignore[arg-type]


def authors_table(blocks: tuple[int, ...], convs: int, w: int, a: int, shortcut_first: bool) -> dict:
    """Written down from the authors' YAML files: BIT_CONFIG by hand for a depth."""
    table: dict = {"conv1": {"w": 8, "a": 8}, "fc": {"w": 0, "a": 0}}
    for stage, depth in enumerate(blocks, start=1):
        for block in range(depth):
            name = f"layer{stage}.{block}"
            table[name] = {"w": None, "a": a}
            for conv in range(1, convs + 1):
                table[f"{name}.conv{conv}"] = {"w": w, "a": a if conv < convs else 0}
            if block == 0 and (stage > 1 or shortcut_first):
                table[f"{name}.downsample"] = {"w": w, "a": 0}
    return table


@pytest.mark.parametrize(
    ("depth", "blocks", "convs", "points"),
    [(18, (2, 2, 2, 2), 2, 17), (34, (3, 4, 6, 3), 2, 33), (50, (3, 4, 6, 3), 3, 49)],
)
@pytest.mark.parametrize("prefix", ["resnet", "cifar_resnet"])
def test_resnets_have_the_authors_lists(
    prefix: str, depth: int, blocks: tuple[int, ...], convs: int, points: int
) -> None:
    policy = policy_of(f"{prefix}{depth}")
    assert len(policy.points) == points
    assert policy.table(3, 5) == authors_table(blocks, convs, 3, 5, shortcut_first=convs == 3)


def test_full_precision_overrides_pins_unless_told() -> None:
    policy = policy_of("cifar_resnet18")
    assert {(row["w"] or 0, row["a"]) for row in policy.table(0, 0).values()} == {(0, 0)}
    assert policy.table(0, 0, keep_pins=True)["conv1"] == {"w": 8, "a": 8}
    assert [effective(pin, drawn) for pin, drawn in [(None, 3), (8, 3), (8, 0), (0, 3)]] == [3, 8, 0, 0]


def test_overrides_by_the_authors_names() -> None:
    policy = policy_of("cifar_resnet18")
    changed = policy.override(
        {"conv1": {"w": 4}, "layer2.0": {"a": 8}, "layer2.0.downsample": {"w": 8, "a": 0}, "layer1.0.conv2": {"a": 0}}
    )
    table = changed.table(2, 2)
    assert table["conv1"] == {"w": 4, "a": 8} and table["layer2.0"]["a"] == 8
    assert table["layer2.0.downsample"] == {"w": 8, "a": 0} and policy.table(2, 2)["conv1"]["w"] == 8
    assert changed.override({"layer2.0.downsample.0": {"w": 3}}).table(2, 2)["layer2.0.downsample"]["w"] == 3
    for config, text in [
        ({"layer1.0.conv9": {"w": 4}}, "did you mean 'layer1.0.conv"),
        ({"layer1.0.conv2": {"a": 4}}, "nothing of that kind"),
        ({"layer1.0": {"w": 4}}, "nothing of that kind"),
        ({"conv1": {"x": 4}}, "cannot be set"),
        ({"conv1": {"w": 1}}, r"0 \(float\) or 2 to 16"),
    ]:
        with pytest.raises(InputError, match=text):
            policy.override(config)


def test_include_and_exclude() -> None:
    without = policy_of("cifar_resnet18", exclude=("layer4.*", "*downsample*"))
    assert len(without.points) == 13 and without.weights["layer4.1.conv1"] == 0
    assert without.weights["layer2.0.downsample.0"] == 0 and without.weights["layer3.0.conv1"] is None
    only = policy_of("cifar_resnet18", include=("layer1.*",))
    assert only.points == ["layer1.0.conv1", "layer1.0", "layer1.1.conv1", "layer1.1"]
    with pytest.raises(InputError, match="matches no layer"):
        policy_of("cifar_resnet18", exclude=("nothing",))


def test_other_nets_by_trace() -> None:
    """Fused batch norms (MobileNetV2): the activation is called by the convolution before it; linear ends have none."""
    policy = policy_of("mobilenetv2_050")
    assert policy.weights["conv_stem"] == 8 and policy.weights["classifier"] == 0
    assert policy.follows["bn1.act"] == "conv_stem" and policy.activations["bn1.act"] == 8
    assert "blocks.1.0.conv_pw" in policy.points and "blocks.1.0.conv_pwl" not in policy.points


def test_a_projector_in_the_classifier_s_place_has_its_own_pins() -> None:
    net = create_model("cifar_resnet18")
    net.fc = nn.Sequential(nn.Linear(512, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4))
    policy = derive_policy(net, (3, 8, 8))
    assert policy.table(2, 2)["fc.0"] == {"w": 8, "a": 0} and policy.weights["fc.3"] == 8
    assert len(policy.points) == 17 and policy.activations["fc.2"] == 0


def test_the_trace_leaves_the_net_as_it_was() -> None:
    net = create_model("cifar_resnet18").train()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.layer1.eval()
    derive_policy(net, (3, 8, 8))
    assert net.training and not net.layer1.training and not net.conv1._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_activations_after_sums_take_their_block_s_name_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act1, self.act2, self.act3 = nn.Conv2d(3, 3, 1), nn.ReLU(True), nn.ReLU(True), nn.ReLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.act1(self.conv(x))
            y += x
            return self.act3(self.act2(y) + x)

    net = nn.Sequential()
    net.add_module("block", Twice())
    policy = derive_policy(net, (3, 4, 4))
    assert policy.follows == {"block.act1": "block.conv", "block.act2": "block", "block.act3": "block.act3"}


@pytest.mark.parametrize("kind", sorted({*_ACT_LAYER_DEFAULT.values(), *_ACT_LAYER_ME.values()}, key=str))
def test_every_activation_of_timm_is_known_a_gate_or_told(kind: type[nn.Module]) -> None:
    module, x = kind(), torch.linspace(-4, 8, 99)
    function = function_of(module)
    if function is None:
        assert kind in (nn.Identity, get_act_layer("prelu")) or kind.__name__ in GATES
    else:
        assert torch.allclose(FUNCTIONS[function](x.clone()), module(x.clone()), atol=1e-6)


def test_activations_out_of_reach_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        net = nn.Sequential(nn.Conv2d(3, 3, 1), create_act_layer("gelu_tanh"), nn.Conv2d(3, 3, 1))
        assert derive_policy(net, (3, 4, 4)).points == ["0"] and not caplog.messages
        net[1] = nn.Sequential(nn.PReLU(), nn.LeakyReLU(0.1), nn.Sigmoid())
        assert not derive_policy(net, (3, 4, 4)).points
        assert not derive_policy(net[:1], (3, 4, 4)).points
    assert ["1.0 (PReLU), 1.1 (LeakyReLU)" in caplog.messages[0], "no activation modules" in caplog.messages[1]] == [
        1,
        1,
    ]


@pytest.mark.parametrize(("name", "expected"), [("layer2.0.downsample.0", "layer2.0.downsample"), ("fc.0", "fc.0")])
def test_short_names(name: str, expected: str) -> None:
    assert short(name) == expected
