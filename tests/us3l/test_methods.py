"""From configs to objectives: keys of the authors' files, heads by role, widths, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.losses.ranks import Ranks
from lowbit.slim.layers import slimmable_layers
from lowbit.slim.norms import SlimBatchNorm2d, SwitchableBatchNorm2d
from lowbit.train.protocol import Clock
from us3l.commands.distill import teacher_of
from us3l.config import Config
from us3l.methods import build, check, heads_of
from us3l.names import net_of
from us3l.network import network
from us3l.objective import UniversallySlimmable
from us3l.sampling import Sampling

SIZE = (3, 32, 32)
PARTS = ("encoder_q", "encoder_k", "predictor", "predictor_new", "proj_conv", "queue")
SMALL = {"DIM": 8, "HIDDEN_DIM": 8, "MOCO_K": 16}


def config_of(method: str | None, arch: str = "us_cifar_resnet8_1x1", **more: Any) -> Config:
    """Small heads; `more` are settings of MODEL.OFA, or the sections TRAIN and (TEACHER) DISTILL."""
    names = {"TRAIN": "TRAIN", "TEACHER": "DISTILL"}
    sections = {section: more.pop(name) for name, section in names.items() if name in more}
    setting = SMALL | more.pop("SETTING", {})
    return Config.model_validate(
        {"MODEL": {"ARCH": arch, "OFA": more}, "SSL": {"TYPE": method, "SETTING": setting}, **sections}
    )


def built(method: str | None, arch: str = "us_cifar_resnet8_1x1", **more: Any) -> UniversallySlimmable:
    return build(config_of(method, arch, **more), SIZE)


SEVERAL = {"NUM_SAMPLE_TRAINING": 3, "MOMENTUM_UPDATE": False}
MAPS = {
    **SEVERAL, "DISTILL_FEATURE": True, "DISTILL_FEATURE_CRITERION": "MSELoss",
    "DISTILL_FEATURE_NAME": ("layer2.1.bn2", "layer3.1.bn2", "layer4.1.bn2"), "DISTILL_FEATURE_DIM": (128, 256, 512),
}  # fmt: skip
FILES: dict[str, tuple[str, str, dict[str, Any], tuple[int, int]]] = {  # DIM and HIDDEN_DIM
    "train_simclr_momentum_dim64": ("SimCLR_Momentum", "us_cifar_resnet18", SEVERAL, (64, 64)),
    "train_byol_dim64": ("BYOL", "us_cifar_resnet18", SEVERAL, (64, 64)),
    "ssl_simclr_us_cifar_resnet18": ("SimCLR", "us_cifar_resnet18", SEVERAL, (256, 2048)),
    "ssl_simclr_momentum_us_cifar_resnet18_feature_distill": (
        "SimCLR_Momentum", "us_cifar_resnet18", MAPS, (256, 2048)
    ),
}  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_parameters_have_the_authors_names_and_shapes(recorded: Any, file: str) -> None:
    method, arch, ofa, (dim, hidden) = FILES[file]
    objective = built(method, arch, SETTING={"DIM": dim, "HIDDEN_DIM": hidden}, **ofa)
    theirs = {
        key.removeprefix("module."): tuple(shape)
        for key, shape, _ in recorded.json("keys")[file]["keys"]
        if not key.rpartition(".")[2].startswith(("running", "num_"))
    }
    assert {name: tuple(p.shape) for name, p in objective.named_parameters()} == theirs


def test_heads_by_role() -> None:
    def heads(method: str, **more: Any) -> tuple[str, str]:
        return heads_of(config_of(method, **SEVERAL | more))

    assert [heads(method) for method in ("SimSiam", "MoCo")] == [("predictor", "predictor"), ("", "")]
    for method in ("BYOL", "MoCo_v3", "SimSiam_Momentum"):
        assert heads(method) == ("predictor", "predictor_new")
        assert heads(method, MOMENTUM_UPDATE=True) == ("predictor", "predictor")
        assert heads(method, SETTING={"NEW_DISTILL_HEAD": False}) == ("predictor", "predictor")
        assert heads(method, DISTILL=False) == ("predictor", "predictor_new"), "only MOMENTUM_UPDATE decides"
        assert heads(method, NUM_SAMPLE_TRAINING=1) == ("predictor", "predictor")
    for method in ("SimCLR", "SimCLR_Momentum"):
        assert heads(method) == ("", "predictor")
        assert heads(method, MOMENTUM_UPDATE=True) == heads(method, SETTING={"PREDICTOR": False}) == ("", "")
        assert heads(method, DISTILL=False) == ("", "predictor")
    for method, momentum in (("SimCLR", False), ("SimCLR_Momentum", True), ("SimSiam", False), ("BYOL", True)):
        objective = built(method, **SEVERAL)
        made = {name for name in ("predictor", "predictor_new") if hasattr(objective, name)}
        assert made == set(objective.plan.heads) - {""}, "no head that no pass uses"
        assert hasattr(objective, "encoder_k") == momentum and not objective.plan.moves_per_pass
    assert built("SimSiam", NUM_SAMPLE_TRAINING=3).plan.moves_per_pass


def test_widths_batch_norm_and_momentum() -> None:
    several = built("BYOL", **SEVERAL, SAMPLE_SCHEDULER="A", SANDWICH=False, STEP_PER="batch", REGULARIZER=True)
    assert several.plan.sampling == Sampling(0.25, 1.0, 3, False, "A") and several.plan.step_per_batch
    assert several.plan.decay is not None and several.plan.decay.lambdas(9, 10) == (5e-4,) * 4, "L2Reg: equal groups"
    assert several.optimizers()["main"].param_groups[0]["weight_decay"] == 0
    single = built("BYOL", WIDTH_MULT=0.5)
    assert single.plan.sampling == Sampling(fixed=(0.5,)) and single.plan.decay is None
    listed = built("BYOL", "s_cifar_resnet8_1x1", USE_SLIMMABLE=True, WIDTH_MULT_LIST=(0.5, 1.0, 0.25))
    assert listed.plan.sampling.widths(0, 1, lambda low, high: low) == (1.0, 0.5, 0.25)
    assert sum(isinstance(m, SwitchableBatchNorm2d) for m in listed.encoder_q.modules()) == 9
    plain = built("SimSiam", "cifar_resnet8_1x1")
    assert not slimmable_layers(plain.encoder_q)
    for objective, tracked in ((several, False), (single, True), (built("SimSiam", **SEVERAL), True)):
        norms = [m for m in objective.encoder_q.modules() if isinstance(m, SlimBatchNorm2d)]
        assert len(norms) == 9 and {norm.track_running_stats for norm in norms} == {tracked}


@pytest.mark.parametrize(("method", "start"), [("SimSiam", 0), ("SimCLR_Momentum", 1)])
def test_the_last_batch_norm_of_a_timm_resnet_s_block(method: str, start: int) -> None:
    encoder = built(method, "us_test_resnet", **SEVERAL).encoder_q
    assert (encoder.get_parameter("layer1.0.bn2.weight") == start).all()
    net = network(net_of("us_test_resnet"), SIZE, (0.5, 1.0), 2)
    assert (net.get_parameter("layer1.0.bn2.weight") == 1).all()


def test_a_vision_transformer_under_moco_v3() -> None:
    """Its blocks' inputs are slimmed, and decayed by group; a step of three widths trains all of it."""
    own = SEVERAL | {"REGULARIZER": True, "SETTING": {"MOMENTUM_COSINE": True, "MOMENTUM": 0.9}}
    objective = build(config_of("MoCo_v3", "us_test_vit", **own), (3, 160, 160))
    assert objective.plan.decay is not None and objective.plan.decay.of_inputs
    heads: list[Any] = [objective.encoder_q.head, objective.predictor, objective.predictor_new]
    assert all(isinstance(head[-1], torch.nn.BatchNorm1d) and not head[-1].affine for head in heads)
    momentum: Any = objective.plan.momentum
    rising = [momentum(Clock(0, epoch, 4, 0, 1, seed=0)) for epoch in range(5)]
    assert rising == pytest.approx([1 - 0.1 * (math.cos(math.pi * epoch / 4) + 1) / 2 for epoch in range(5)])
    layers = slimmable_layers(objective.encoder_q)
    assert len(layers) == 4 * len(objective.encoder_q.blocks) and all(name.startswith("blocks.") for name in layers)
    views, clock, carry = torch.randn(2, 2, 3, 160, 160), Clock(0, 0, 1, 0, 1, seed=0), None
    batch = Batch((views[0], views[1]), torch.arange(2))
    for pas in objective.passes(clock):
        out = objective(batch, clock, pas, carry)
        carry = out.carry
        out.loss.backward()
    unused = {name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None}
    assert not unused and len(objective.passes(clock)) == 3


def test_a_switchable_net_has_its_own_batch_norm_at_each_width() -> None:
    """A step moves the statistics of all, of the encoder and, at width 1 alone, of the copy that gives the targets."""
    own = {"USE_SLIMMABLE": True, "WIDTH_MULT_LIST": (1.0, 0.5, 0.25), "MOMENTUM_UPDATE": False}
    objective = built("BYOL", "s_cifar_resnet8_1x1", **own)
    views, clock, carry = torch.randn(2, 4, *SIZE), Clock(0, 0, 1, 0, 1, seed=0), None
    for pas in objective.passes(clock):
        carry = objective(Batch((views[0], views[1]), torch.arange(4)), clock, pas, carry).carry
    for encoder, moved in ((objective.encoder_q, [True] * 3), (objective.encoder_k, [True, False, False])):
        norm = next(m for m in encoder.modules() if isinstance(m, SwitchableBatchNorm2d))
        assert [bool(bn.running_mean.any()) for bn in norm.bn] == moved


def test_us_simsiam_is_simsiam_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        named, plain = built("US_SimSiam", "cifar_resnet8_1x1"), built("SimSiam", "cifar_resnet8_1x1")
    assert [record.message for record in caplog.records if "US_SimSiam" in record.message] == [
        "SSL.TYPE=US_SimSiam is no method of its own: SimSiam is run"
    ]
    pairs = zip(named.parameters(), plain.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs), "drawn from SEED"
    caplog.clear()
    with caplog.at_level("INFO"):
        built("BYOL", **criterion("CosineSimilarityv2"))
    assert sum("with the authors' sign it would repel" in record.message for record in caplog.records) == 1


def test_exp_groups_without_alpha() -> None:
    """0^0 = 1: only the first group is decayed, as by the formula; L2Reg has no groups, whatever alpha and kind say."""
    for name, lambdas in (("GroupReg", (5e-4, 0, 0, 0)), ("L2Reg", (5e-4,) * 4)):
        decay = built("BYOL", **SEVERAL, REGULARIZER=True, REGULARIZER_CRITERION=name, REGULARIZER_DECAY_ALPHA=0).plan
        assert decay.decay is not None and decay.decay.lambdas(9, 10) == lambdas


@pytest.mark.parametrize("name", ["InfoNCEv2", "CosineSimilarityv2"])
def test_what_narrower_nets_learn_by(name: str) -> None:
    """NT-Xent of a sub-network's own views, without targets; 2 - 2 cos with the other view's target, of both pairs."""
    objective = built("SimCLR_Momentum", DISTILL_CRITERION=name, **SEVERAL | {"SETTING": {"T": 0.5}})
    p, t = torch.nn.functional.normalize(torch.randn(4, 6, 8, dtype=torch.float64), dim=-1).chunk(2)
    e = torch.cat([*p]).mm(torch.cat([*p]).T).div(0.5).exp().fill_diagonal_(0)
    pairs = {
        "InfoNCEv2": -(e.diagonal(6).repeat(2) / e.sum(1)).log().mean(),
        "CosineSimilarityv2": 4 - 2 * ((p[0] * t[1]).sum(1).mean() + (p[1] * t[0]).sum(1).mean()),
    }
    assert objective.plan.distillation is not None
    found = objective.plan.distillation(3 * p, 2 * t, Ranks((6,)))
    assert found.item() == pytest.approx(pairs[name].item(), abs=1e-12)


def test_layers_of_mobilenet_by_the_authors_names() -> None:
    """Maps are of timm's modules in these places, 32 and 320 channels; the lifts have the authors' names and learn."""
    names = ("features.6.body.7", "features.17.body.7")
    own = {"DISTILL_FEATURE_NAME": names, "DISTILL_FEATURE_DIM": (32, 320)}
    objective, seen, carry, out = built("SimCLR_Momentum", "us_mobilenetv2", **MAPS | own), [], None, None
    for name in ("blocks.2.2.bn3", "blocks.6.0.bn3"):
        objective.encoder_k.get_submodule(name).register_forward_hook(lambda module, args, x: seen.append(x))
    views, clock = torch.randn(2, 2, *SIZE), Clock(0, 0, 1, 0, 1, seed=0)
    for pas in objective.passes(clock)[:2]:
        out = objective(Batch((views[0], views[1]), torch.arange(2)), clock, pas, carry)
        carry = out.carry
    assert out is not None and carry is not None
    out.loss.backward()
    assert [x.shape[1] for x in seen] == [32, 320] * 2
    assert all(x is y for x, y in zip(seen, [maps[view] for view in (0, 1) for maps in carry[1].values()], strict=True))
    lifts = {name: p for name, p in objective.named_parameters() if name.startswith("proj_conv.")}
    assert list(lifts) == ["proj_conv.features_6_body_7.weight", "proj_conv.features_17_body_7.weight"]
    assert all(p.grad is not None and bool(p.grad.any()) for p in lifts.values())


def criterion(name: str) -> dict[str, Any]:
    return {"TRAIN": {"LOSS": {"CRITERION": {"NAME": name}}}}


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        (None, {}, "SSL.TYPE is missing"),
        ("SEED", criterion("CosineSimilarity"), "take soft_distill, or SSL.TYPE=SEED_MSE"),
        ("MoCo", criterion("CosineSimilarity"), "take CrossEntropy"),
        ("BYOL", {"SETTING": {"MLP": False}}, "SSL.SETTING.MLP"),
        ("BYOL", {"arch": "s_cifar_resnet8_1x1", "NUM_SAMPLE_TRAINING": 3}, "USE_SLIMMABLE"),
        ("BYOL", {"DISTILL_FEATURE": True, "DISTILL_FEATURE_CRITERION": "AMSELoss"}, "AMSELoss"),
        ("MoCo", {"NUM_SAMPLE_TRAINING": 3, "DISTILL": False}, "DISTILL=True"),
    ],
)
def test_what_is_refused_before_any_data_is_read(method: str | None, more: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        check(config_of(method, **more))
    assert "\n" not in str(error.value)


def test_what_does_not_fit_the_net_or_the_command() -> None:
    with pytest.raises(InputError, match=r"no module 'layer9.bn2'.*layer1\.0"):
        built("BYOL", **MAPS | {"DISTILL_FEATURE_NAME": ("layer9.bn2",), "DISTILL_FEATURE_DIM": (8,)})
    with pytest.raises(InputError, match="128, 256, 512 channels"):
        built("BYOL", "us_cifar_resnet18", **MAPS | {"DISTILL_FEATURE_DIM": (128, 256)})
    with pytest.raises(InputError, match=r"fc of us_.* does not give one feature map"):
        built("BYOL", **MAPS | {"DISTILL_FEATURE_NAME": ("fc",), "DISTILL_FEATURE_DIM": (8,)})
    with pytest.raises(InputError, match="us3l distill"):
        built("SEED")
    with pytest.raises(InputError, match="TEACHER_DIM"):
        build(config_of("SEED"), SIZE, teacher=torch.nn.Identity())


@pytest.mark.parametrize("method", ["SEED", "SEED_MSE", "SEED_SimCLR"])
def test_a_teacher_is_read_with_its_projector(method: str, tmp_path: Path) -> None:
    """From a checkpoint of this or of the authors' program."""
    trained = built("BYOL", "cifar_resnet8_1x1")
    state = {f"module.{key}": value for key, value in trained.state_dict().items()}
    write_checkpoint(tmp_path / "teacher.pth.tar", {"state_dict": state, "epoch": 1}, keep_previous=False)
    own = {
        "TEACHER_ARCH": "cifar_resnet8_1x1", "TEACHER_PRETRAINED": str(tmp_path / "teacher.pth.tar"), "TEACHER_DIM": 8,
        "TEACHER_HIDDEN_DIM": 8,
    }  # fmt: skip
    config = config_of(method, WIDTH_MULT=0.25, DISTILL_STUDENT_TEMP=0.5, DISTILL_TEACHER_TEMP=0.1, TEACHER=own)
    teacher = teacher_of(config)
    x = torch.randn(2, *SIZE)
    assert torch.equal(teacher(x), trained.encoder_q.eval()(x)) and not any(
        p.requires_grad for p in teacher.parameters()
    )
    objective = build(config, SIZE, teacher=teacher)
    assert objective.plan.sampling.fixed == (0.25,)
    assert (objective.keys is not None, objective.n_views) == ((True, 1) if method == "SEED" else (False, 2))
    assert hasattr(objective, "predictor") == (method == "SEED_MSE")
    with pytest.raises(InputError, match=r"^DISTILL.TEACHER_PRETRAINED: nosuch is not a file"):
        teacher_of(config_of(method, TEACHER=own | {"TEACHER_PRETRAINED": "nosuch"}))
    with pytest.raises(InputError, match=r"TEACHER_DIM=16: .*teacher\.pth\.tar: .* 8 classes, and 16 are"):
        teacher_of(config_of(method, TEACHER=own | {"TEACHER_DIM": 16}))
    with pytest.raises(InputError, match="TEACHER_PRETRAINED"):
        teacher_of(config_of(method))


def test_what_seeds_projector_lacks_of_a_teacher_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SimCLR's projector has a bias more; its other tensors are the file's."""
    own = {
        "TEACHER_ARCH": "cifar_resnet8_1x1", "TEACHER_PRETRAINED": str(tmp_path / "teacher.pth.tar"), "TEACHER_DIM": 8,
        "TEACHER_HIDDEN_DIM": 8,
    }  # fmt: skip
    for method, said in (("BYOL", []), ("SimCLR", ["teacher.pth.tar: SEED's projector has no fc.3.bias, left out"])):
        state = built(method, "cifar_resnet8_1x1").state_dict()
        write_checkpoint(Path(own["TEACHER_PRETRAINED"]), {"state_dict": state}, keep_previous=False)
        caplog.clear()
        found = teacher_of(config_of("SEED", TEACHER=own)).state_dict()
        assert [record.message.rpartition("/")[2] for record in caplog.records if "SEED" in record.message] == said
        assert all(torch.equal(value, state[f"encoder_q.{key}"]) for key, value in found.items())
