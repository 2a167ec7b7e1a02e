"""From configs to objectives: the nine methods, pins, optimizer groups, and what is refused."""

import json
import re
from typing import Any

import pytest
import torch

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, attach_projector_, build_heads
from lowbit.quant.bitwidths import activations, weight_quantizers
from ssql.bit_policy import derive_policy, policy_of, short
from ssql.config import Config, Quant
from ssql.methods import build, classifier, drawing_of, plan_of
from ssql.objective import Contrastive, MomentumContrast, Reversed, Siamese
from ssql.optim import rates

SIZE = (3, 32, 32)
KINDS = {
    "SimSiam": Siamese, "SSQL_SimSiam": Siamese, "RSSQL_SimSiam": Reversed, "BYOL": Siamese, "SSQL_BYOL": Siamese,
    "SimCLR": Contrastive, "SSQL_SimCLR": Contrastive, "MoCo": MomentumContrast, "SSQL_MoCo": MomentumContrast,
}  # fmt: skip


def config_of(kind: str | None, arch: str = "cifar_resnet18", **more: Any) -> Config:
    """A config with small heads; `more` are settings of SSL.SETTING, or sections (TRAIN, QUANT)."""
    sections = {name: more.pop(name) for name in ("TRAIN", "QUANT") if name in more}
    setting = {"DIM": 16, "HIDDEN_DIM": 16, "MOCO_K": 32, **more}
    tree = {"MODEL": {"ARCH": arch}, "SSL": {"TYPE": kind, "SETTING": setting}, **sections}
    return Config.model_validate_json(json.dumps(tree))  # of JSON it takes lists for tuples


def quant_of(**sections: Any) -> Quant:
    return Quant.model_validate_json(json.dumps(sections))


@pytest.mark.parametrize("kind", KINDS)
def test_every_method_is_built_with_the_authors_names(recorded: Any, kind: str) -> None:
    """Parameters and buffers, in their plain layout (without a quantized branch theirs is the same)."""
    objective = build(config_of(kind), SIZE)
    assert type(objective) is KINDS[kind]
    order = recorded.json("keys")["ssl_fill_order"]["r18"]
    name = {"SSQL_SimCLR": "SimCLR", "RSSQL_SimSiam": "SSQL_SimSiam"}.get(kind, kind)
    theirs = [key for key, _ in order[name]]
    ours = [re.sub(r"^keys\.", "", key) for key in objective.state_dict() if ".observer." not in key]
    assert set(ours) == set(theirs)
    assert [key for key in ours if key.startswith("encoder_q.")] == [k for k in theirs if k.startswith("encoder_q.")]
    quantized = "SSQL" in kind
    assert (objective.drawing is not None) == quantized
    assert len(weight_quantizers(objective.encoder_q)) == quantized * (
        20 + (3 if "SimSiam" in kind or "BYOL" in kind else 2)
    )
    assert len(activations(objective.encoder_q)) == quantized * 17


def test_settings_reach_the_objective() -> None:
    config = config_of("MoCo", T=0.3, MOMENTUM=0.5)
    moco, again = build(config, SIZE), build(config, SIZE).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in moco.state_dict().items()), "drawn from SEED"
    assert isinstance(moco, MomentumContrast)
    assert (moco.temperature, moco.momentum, tuple(moco.keys.queue.shape)) == (0.3, 0.5, (16, 32))
    simclr = build(config_of("SimCLR", NEGATIVES="gathered"), SIZE)
    assert isinstance(simclr, Contrastive) and simclr.gathered
    assert drawing_of(config_of("RSSQL_SimSiam")).equal
    drawing = drawing_of(
        config_of(
            "SSQL_SimSiam",
            QUANT={"W": {"BIT_RANGE": [3, 5]}, "A": {"BIT_RANGE": [5, 7]}, "SYNC_RANGES": False, "BN": "float"},
        )
    )
    assert (drawing.w_range, drawing.a_range) == ((3, 5), (5, 7))
    assert not (drawing.sync or drawing.shared_norm or drawing.equal)
    wrapped = build(
        config_of(
            "SSQL_SimSiam",
            QUANT={
                "W": {"SCALE": "differentiable", "GRID": "whole", "GRANULARITY": "layerwise"},
                "A": {"OBSERVER_METHOD": {"NAME": "GAUSSIAN"}},
            },
        ),
        SIZE,
    ).encoder_q
    weight = weight_quantizers(wrapped)[0].config
    assert weight.differentiable_scale and weight.grid == "whole" and not weight.per_channel
    assert {a.observer.config.name for a in activations(wrapped).values()} == {"gaussian"}


@pytest.mark.parametrize("depth", [18, 34, 50])
def test_pins_are_the_authors_lists(recorded: Any, depth: int, caplog: pytest.LogCaptureFixture) -> None:
    """Derived from the net, and read from a list of theirs, the bits of every layer are the same."""
    files = [
        (name, flat)
        for name, flat in recorded.json("configs").items()
        if f"resnet{depth}_ssql" in name and name.startswith("cifar/")
    ]
    assert files
    for name, flat in files:
        encoder = create_model(f"cifar_resnet{depth}", num_classes=1)
        kind = flat["SSL.TYPE"]
        attach_projector_(encoder, lambda features, kind=kind: build_heads(plan_of(kind), features, 16, 16))
        listed = policy_of(encoder, quant_of(BIT_CONFIG=flat["QUANT.BIT_CONFIG"]), SIZE)
        derived = policy_of(encoder, Quant(), SIZE)
        for bits in ((2, 4), (7, 5)):
            assert listed.table(*bits) == derived.table(*bits), name
        table = derived.table(3, 6)
        for layer, pins in flat["QUANT.BIT_CONFIG"][0].items():
            assert {side: table[layer][side] for side in pins} == pins, f"{name}: {layer}"
        assert len(derived.points) == {18: 17, 34: 33, 50: 49}[depth]
    assert not caplog.messages


def test_a_list_replaces_the_derived_pins_but_the_classifier_stays_float() -> None:
    net = create_model("cifar_resnet18", num_classes=10)
    listed = policy_of(net, quant_of(BIT_CONFIG=[{"layer1.0.conv1": {"w": 5}}]), SIZE)
    assert listed.weights["layer1.0.conv1"] == 5 and listed.weights["conv1"] is None
    assert listed.weights["fc"] == 0
    listed = policy_of(net, quant_of(BIT_CONFIG=[{"fc": {"w": 8, "a": 0}}]), SIZE)
    assert listed.table(4, 4)["fc"] == {"w": 0, "a": 0}, (
        "the authors' ImageNet evaluation lists it, and leaves it float"
    )
    assert policy_of(net, Quant(), SIZE) == derive_policy(net, SIZE)
    with pytest.raises(InputError, match=r"layer1\.0\.conv9.*did you mean"):
        policy_of(net, quant_of(BIT_CONFIG=[{"layer1.0.conv9": {"w": 8}}]), SIZE)


@pytest.mark.parametrize(("kind", "start"), [("SimSiam", 0), ("SSQL_SimSiam", 0), ("BYOL", 1), ("SSQL_BYOL", 1)])
def test_the_last_batch_norm_of_a_timm_resnet_s_block(kind: str, start: int) -> None:
    encoder = build(config_of(kind, "test_resnet"), SIZE).encoder_q
    assert (encoder.get_parameter("layer1.0.bn2.weight") == start).all()
    net = classifier(config_of(kind, "test_resnet"), SIZE, 2)
    assert (net.get_parameter("layer1.0.bn2.weight") == 1).all(), "fine-tuning is as torchvision's ResNets begin"


def test_a_list_that_leaves_outputs_without_an_activation_out_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """In the original they are quantized at A.BIT; ours stay float."""
    net = create_model("test_resnet", num_classes=10)
    policy = derive_policy(net, SIZE)
    ends = {short(name) for name in policy.weights if name not in policy.follows.values()} - {"fc"}
    listed = {name: {"a": 0} for name in ends - {"layer1.0.conv2", "layer3.0.conv3"}}
    policy_of(net, quant_of(BIT_CONFIG=[{**listed, "layer3.0.conv3": {"w": 4}}], A={"BIT": 0}), SIZE)
    assert not caplog.messages
    policy_of(net, quant_of(BIT_CONFIG=[{**listed, "layer3.0.conv3": {"w": 4}}], A={"BIT": 4}), SIZE)
    assert len(caplog.messages) == 1 and " of layer1.0.conv2, layer3.0.conv3: " in caplog.messages[0]
    policy_of(net, quant_of(BIT_CONFIG=[{"conv1.0": {"w": 8}}], A={"BIT": 4}), SIZE)
    assert f" and {len(ends) - 3} more" in caplog.messages[1]


def test_optimizer_groups() -> None:
    train = {"OPTIMIZER": {"MOMENTUM": 0.9, "WEIGHT_DECAY": 5e-4}, "LR_SCHEDULER": {"BASE_LR": 0.05}}
    plain = build(config_of("SSQL_BYOL", TRAIN=train), SIZE)
    (group,) = plain.optimizers()["main"].param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"], group["schedule"]) == (0.05, 0.9, 5e-4, "main")
    assert {id(p) for p in group["params"]} == {id(p) for p in plain.parameters() if p.requires_grad}

    train["OPTIMIZER"] |= {"DECAY_NORM_AND_BIAS": False}
    config = config_of("SSQL_BYOL", TRAIN=train, PREDICTOR_LR="fixed")
    objective = build(config, SIZE)
    names = {id(p): name for name, p in objective.named_parameters()}
    groups = objective.optimizers()["main"].param_groups
    assert len(groups) == 4 and {g["schedule"] for g in groups} == set(rates(config, "ssl"))
    assert sum(len(g["params"]) for g in groups) == len([p for p in objective.parameters() if p.requires_grad])
    for g in groups:
        for p in g["params"]:
            assert names[id(p)].startswith("predictor.") == (g["schedule"] == "fixed")
            assert g["weight_decay"] == (5e-4 if p.dim() > 1 else 0.0)


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"SSL\.TYPE"):
        build(config_of(None), SIZE)
    with pytest.raises(InputError, match="unknown net 'cifar_resnet19'"):
        build(config_of("SimSiam", arch="cifar_resnet19"), SIZE)
    encoder = create_model("cifar_resnet18", num_classes=0)
    with pytest.raises(InputError, match="no linear classifier"):
        attach_projector_(encoder, lambda features: build_heads(plan_of("SimSiam"), features, 16, 16))


def test_heads_are_those_of_the_method_that_a_type_stands_on() -> None:
    for name in ("SimSiam", "SimCLR", "MoCo"):
        assert plan_of(name) == plan_of(f"SSQL_{name}") == HEADS[name]
    assert plan_of("RSSQL_SimSiam") == plan_of("SimSiam")


def test_output_bn_makes_a_pair_equal() -> None:
    def described(kind: str, output_bn: bool | None) -> list:
        heads = build_heads(plan_of(kind), 12, 8, 5, output_bn)
        return [(n, p.shape, p.requires_grad) for n, p in heads.projector.named_parameters()] + [str(heads.predictor)]

    assert described("BYOL", None) != described("SSQL_BYOL", None)
    for both in (True, False):
        assert described("BYOL", both) == described("SSQL_BYOL", both)
    heads = build_heads(plan_of("BYOL"), 12, 8, 5, True)
    assert not dict(heads.projector.named_parameters())["6.bias"].requires_grad
