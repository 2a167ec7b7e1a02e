"""Teachers out of every kind of file: which net, which output of it, and what is refused before anything starts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.evaluate.features import pooled
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.models.heads import projector
from s2bnn.load import header
from s2bnn.methods import build
from s2bnn.options import METHODS, PretrainOptions, pretrain_options
from s2bnn.teacher import open_teacher

ARCH, SIZE = "cifar_resnet8_1x1", (3, 8, 8)
CFG = {
    "input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_mode": "center",
    "interpolation": "bilinear",
}  # fmt: skip


def net_of(head: nn.Module, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    net: Any = create_model(ARCH, num_classes=1)
    net.fc = head
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.normal_(norm.running_mean)
    return net.eval()


def own(path: Path | None = None, **more: Any) -> PretrainOptions:
    given = {"arch": ARCH, "student": ARCH, "teacher_path": path, "moco_dim": 16, "moco_k": 16, "mlp": True} | more
    return pretrain_options(METHODS[2], 1, (), None, **given)


def under(prefix: str, net: nn.Module) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in net.state_dict().items()}


def backbone(net: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}


def file_of(kind: str, net: Any) -> dict[str, Any]:
    """What the authors of a method write, in their layout."""
    copy = net_of(net.fc, seed=1)
    layouts: dict[str, Callable[[], dict[str, Any]]] = {
        "MoCo v2, published": lambda: {"epoch": 800, "state_dict": under("module.encoder_q.", net)},
        "MoCo v2, of a training": lambda: {
            "state_dict": under("module.encoder_q.", net)
            | under("module.encoder_k.", copy)
            | {"module.queue": torch.zeros(16, 8), "module.queue_ptr": torch.zeros(1, dtype=torch.int64)}
        },
        "MoCo v3": lambda: {
            "state_dict": under("module.base_encoder.", net)
            | under("module.momentum_encoder.", copy)
            | {"module.predictor.0.weight": torch.ones(32, 16)}
        },
        "SimSiam": lambda: {"state_dict": under("module.encoder.", net)},
        "SwAV": lambda: (
            {f"module.{key}": value for key, value in backbone(net).items()}
            | {"module.projection_head.0.weight": torch.ones(64, 64), "module.prototypes.weight": torch.ones(9, 16)}
        ),
        "DINO": lambda: {
            "student": {f"module.backbone.{key}": value for key, value in backbone(copy).items()},
            "teacher": {f"backbone.{key}": value for key, value in backbone(net).items()}
            | {"head.mlp.0.weight": torch.ones(64, 64), "head.last_layer.weight_v": torch.ones(9, 16)},
        },
        "torchvision": net.state_dict,
    }
    return layouts[kind]()


BIASLESS = (nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16, bias=False))
HEADS = {
    "MoCo v3": nn.Sequential(*BIASLESS, nn.BatchNorm1d(16, affine=False)),
    "MoCo v2, published": projector(64, 64, 16, 2), "MoCo v2, of a training": projector(64, 64, 16, 2),
    "SimSiam": projector(64, 64, 24, 3), "SwAV": nn.Identity(), "DINO": nn.Identity(),
    "torchvision": nn.Linear(64, 10),
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADS)
def test_the_output_is_the_files_head_or_the_pooled_features(kind: str, tmp_path: Path) -> None:
    net, x = net_of(HEADS[kind]), torch.randn(2, *SIZE)
    torch.save(file_of(kind, net), tmp_path / "file")
    teacher, dim, what = open_teacher(own(tmp_path / "file"), SIZE)
    headed = kind.startswith(("MoCo", "SimSiam"))
    expected = net(x) if headed else pooled(net, x)
    assert torch.equal(teacher(x), expected) and dim == expected.shape[1]
    assert what == ("embeddings" if headed else "pooled features")
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())


def test_files_of_ours(tmp_path: Path) -> None:
    """A real-valued student's checkpoint, with its head, and a backbone."""
    net, x = net_of(projector(64, 64, 16, 2)), torch.randn(2, *SIZE)
    said = header(ARCH, 0, CFG, METHODS[0])
    torch.save({**said, "state_dict": under("encoder_q.", net) | under("encoder_k.", net)}, tmp_path / "own")
    save_backbone(net, tmp_path / "backbone", ARCH, said["pretrained_cfg"])
    assert torch.equal(open_teacher(own(tmp_path / "own"), SIZE)[0](x), net(x))
    assert torch.equal(open_teacher(own(tmp_path / "backbone"), SIZE)[0](x), pooled(net, x))
    torch.save({**said, "binarization": 2, "state_dict": under("encoder_q.", net)}, tmp_path / "binary")
    for path, more, word in (
        ("binary", {}, "binary net"), ("own", {"arch": "resnet18"}, f"-a {ARCH}"), ("gone", {}, "gone"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=word):
            open_teacher(own(tmp_path / path, **more), SIZE)


def test_a_width_of_its_own_gets_a_projector_and_the_student_is_the_same(tmp_path: Path) -> None:
    found = []
    for name, dim in (("equal", 16), ("wide", 24)):
        torch.save(file_of("MoCo v2, published", net_of(projector(64, 64, dim, 2))), tmp_path / name)
        objective, facts = build(own(tmp_path / name), SIZE)
        layer: Any = objective.projector
        assert layer is None if dim == 16 else (layer.in_features, layer.out_features) == (16, 24)
        assert facts["teacher"] == f"{ARCH}, embeddings of {dim} channels"
        assert facts.get("projector", "") == (
            "" if dim == 16 else "linear, from --moco-dim 16 to the teacher's 24 channels"
        )
        found.append(objective.encoder_q.state_dict())
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_timms_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    net, asked = net_of(nn.Linear(64, 10)), []

    def pretrained(arch: str, classes: int, flag: str) -> nn.Module:
        asked.append((arch, classes))
        net.fc = nn.Identity()
        return net

    monkeypatch.setattr("s2bnn.teacher.create_pretrained", pretrained)
    _, dim, what = open_teacher(own(None, timm_teacher=True), SIZE)
    assert (asked, dim, what) == ([(ARCH, 0)], 64, "pooled features")

    def refused(*args: object, **more: object) -> nn.Module:
        raise OSError("no network")

    monkeypatch.undo()
    monkeypatch.setattr("lowbit.models.create.create_model", refused)
    with pytest.raises(InputError, match=r"--timm-teacher: .*no network"):
        open_teacher(own(None, timm_teacher=True), SIZE)


def test_swavs_wide_resnet_is_a_teacher(
    s2bnn: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`resnet50_w4` by its name, here narrow, out of SwAV's layout: 1.5 GB as it is (its shapes: tests of core)."""
    monkeypatch.setattr("lowbit.models.resnet_w4.WIDTHS", (1, 1, 2, 2))
    net: Any = create_model("resnet50_w4", num_classes=0)
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({**state, "module.prototypes.weight": torch.ones(9, 16)}, tmp_path / "swav.pth")
    line = (
        "main_moco", "here", "--dataset", "digits", "--limit-train", 16, "--epochs", 1, "-b", 8, "--max-steps", 1,
        "--probe-every", 0, "--student", ARCH, "--moco-dim", 16, "--method", METHODS[2], "--step", 1, "-a",
        "resnet50_w4", "--teacher-path", tmp_path / "swav.pth", "--output", tmp_path / "run",
    )  # fmt: skip
    s2bnn(*line)
    said = json.loads((tmp_path / "run/config.json").read_text())
    assert said["teacher"] == f"resnet50_w4, pooled features of {net.num_features} channels"
    assert said["projector"] == f"linear, from --moco-dim 16 to the teacher's {net.num_features} channels"
