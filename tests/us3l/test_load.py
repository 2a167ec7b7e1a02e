"""Checkpoints, ours and the authors', to ordinary nets; damaged ones are refused in one line."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.data.recipe import DIGITS, plain
from lowbit.errors import InputError
from lowbit.evaluate.features import pooled
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.slim.conversion import sub_network
from lowbit.slim.layers import at_width
from lowbit.slim.statistics import WidthStatistics
from lowbit.train.process import make_accelerator
from lowbit.train.state import rename
from us3l import authors
from us3l.config import Config
from us3l.evaluation import open_pretrained
from us3l.load import PREFIXES, from_checkpoint, header
from us3l.methods import build
from us3l.names import net_of
from us3l.network import network

SIZE = (3, 8, 8)
CFG = pretrained_cfg(plain(DIGITS), SIZE)
X = torch.randn(6, *SIZE, generator=torch.Generator().manual_seed(1))


def config_of(arch: str = "us_cifar_resnet8_1x1", kind: str = "BYOL", **ofa: Any) -> Config:
    said = {"NUM_SAMPLE_TRAINING": 3, **ofa}
    setting = {"DIM": 16, "HIDDEN_DIM": 24, "MOCO_K": 32}
    tree = {"MODEL": {"ARCH": arch, "OFA": said}, "SSL": {"TYPE": kind, "SETTING": setting}}
    return Config.model_validate_json(json.dumps(tree | {"TRAIN": {"DATASET": "digits"}}))


def checkpoint_of(config: Config, **more: Any) -> tuple[dict[str, Any], nn.Module]:
    objective = build(config, SIZE)
    return {
        **header(config, CFG, **more),
        "state_dict": dict(rename(objective.state_dict(), PREFIXES)),
    }, objective.encoder_q


def calibrated(net: nn.Module, width: float, x: Tensor = X) -> nn.Module:
    """The net with the statistics of a width, for good."""
    batches = [Batch((x,), torch.arange(len(x)))]
    with WidthStatistics(net, lambda: batches, make_accelerator("no", cpu=True)).at(width):
        state = {key: value.clone() for key, value in net.state_dict().items()}
    net.load_state_dict(state)
    return net.eval()


def save(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(content, path)
    return path


@pytest.mark.parametrize("kind", ["BYOL", "SimSiam", "MoCo"])
def test_the_online_encoder_at_full_width(tmp_path: Path, kind: str) -> None:
    saved, encoder = checkpoint_of(config_of(kind=kind))
    net = load(save(tmp_path / "c.pth.tar", saved))
    assert not any(type(module).__module__.startswith("us3l") for module in net.modules())
    encoder.train()
    with torch.no_grad():
        features = pooled(net, X)
        torch.testing.assert_close(features, pooled(encoder, X))  # there are no statistics: both by the batch
        assert features.shape == (6, 64) and net(X).shape == (6, 16)
    assert net.pretrained_cfg["input_size"] == SIZE  # type: ignore[index]


def test_one_width_has_statistics_of_its_own(tmp_path: Path) -> None:
    saved, encoder = checkpoint_of(config_of(NUM_SAMPLE_TRAINING=1, WIDTH_MULT=0.5))
    assert saved["widths"] == [0.5] and saved["width"] == 0.5
    encoder(X)
    net = load(save(tmp_path / "c.pth.tar", saved))
    assert pooled(net, X).shape == (6, 32) and not torch.allclose(pooled(net, X)[:2], pooled(net.train(), X[:2]))
    found = open_pretrained(tmp_path / "c.pth.tar")
    assert found.has_statistics(0.5) and not found.has_statistics(1.0) and found.widths == (0.5,)
    with pytest.raises(InputError, match="was not trained, only"):
        found.check_width(1.0, "--width")


def test_a_width_is_known_by_what_is_printed_of_it_and_a_list_is_no_range(tmp_path: Path) -> None:
    third, listed = 1 / 3, {"USE_SLIMMABLE": True, "WIDTH_MULT_LIST": [1.0, 0.5]}
    for ofa, known, unknown in (
        ({"NUM_SAMPLE_TRAINING": 1, "WIDTH_MULT": third}, 0.333333, 0.3334),
        ({"WIDTH_MULT_RANGE": [third, 1.0]}, 0.333333, 0.3333),
        (listed, 0.5, 0.75),
    ):
        found = open_pretrained(save(tmp_path / "c.pth.tar", checkpoint_of(config_of(**ofa))[0]))
        found.check_width(known, "--width")
        with pytest.raises(InputError, match="was not trained, only"):
            found.check_width(unknown, "--width")


def test_switchable_and_plain_nets(tmp_path: Path) -> None:
    widths = [1.0, 0.5, 0.25]
    saved, encoder = checkpoint_of(
        config_of("s_cifar_resnet8_1x1", USE_SLIMMABLE=True, WIDTH_MULT_LIST=widths), width=None
    )
    with at_width(encoder, 1.0), torch.no_grad():
        encoder(X)
    saved["state_dict"] |= {f"encoder_q.{k}": v for k, v in encoder.state_dict().items()}
    net = load(save(tmp_path / "c.pth.tar", saved))
    encoder.eval()
    torch.testing.assert_close(net(X), encoder(X))
    assert open_pretrained(tmp_path / "c.pth.tar").has_statistics(0.25) and saved["widths"] == widths
    saved, encoder = checkpoint_of(config_of("cifar_resnet8_1x1", NUM_SAMPLE_TRAINING=1))
    torch.testing.assert_close(load(save(tmp_path / "c.pth.tar", saved))(X), encoder.eval()(X))


def test_a_calibrated_backbone_is_the_sub_network(tmp_path: Path) -> None:
    config = config_of()
    net = calibrated(network(config.MODEL.net, SIZE, (0.25, 1.0), 0), 0.5)
    state = {f"encoder_q.{key}": value for key, value in net.state_dict().items()}
    path = save(tmp_path / "c.pth.tar", {**header(config, CFG, 0, 0.5), "state_dict": state})
    found: Any = load(path)
    with at_width(net, 0.5):
        assert torch.equal(found(X), net(X)) and found.conv1.weight.shape == (8, 3, 3, 3)
    opened = open_pretrained(path, "us_cifar_resnet8_1x1")
    assert opened.width == 0.5 and opened.has_statistics(0.52) and not opened.has_statistics(0.75)


def test_statistics_of_an_ordinary_net_and_of_no_width(tmp_path: Path) -> None:
    """timm's are of full width, whatever their last channels are; others' that fit no width are taken for none."""
    net = create_model("cifar_resnet8_1x1", num_classes=0)
    torch.save(net.state_dict(), tmp_path / "timm.pth")
    assert open_pretrained(tmp_path / "timm.pth", "us_cifar_resnet8_1x1").has_statistics(1.0)
    net.get_buffer("bn1.running_mean")[3] = 1.0
    path = save(tmp_path / "theirs", theirs(net, "us_cifar_resnet8_1x1"))
    assert not open_pretrained(path).has_statistics(1.0)
    with pytest.raises(InputError, match="of no width"):
        load(path)


def test_a_net_without_batch_norm_needs_no_statistics(tmp_path: Path) -> None:
    torch.save(create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit.pth")
    found = open_pretrained(tmp_path / "vit.pth", "us_test_vit")
    assert found.net.kind == "universal" and found.has_statistics(0.25)


def theirs(net: nn.Module, arch: str | None, prefix: str = "module.encoder_q.") -> dict[str, Any]:
    state = {prefix + key: value for key, value in net.state_dict().items()}
    return {"state_dict": state} | ({} if arch is None else {"arch": arch})


def test_files_of_the_authors(tmp_path: Path) -> None:
    """Of `ssl` without statistics, of `calibrate` with a bare layer of the projector, of `linear` without a prefix."""
    net = calibrated(network(net_of("us_cifar_resnet8_1x1"), SIZE, (), 5), 0.25)
    arch = "us_cifar_resnet8_1x1"
    with at_width(net, 0.25), torch.no_grad():
        features, logits = pooled(net, X), net(X)
    found = load(save(tmp_path / "calibrate", theirs(net, arch)))
    assert torch.equal(found(X), features)  # their first projector layer is no classifier
    assert open_pretrained(tmp_path / "calibrate").has_statistics(0.25)
    assert torch.equal(load(save(tmp_path / "linear", theirs(net, arch, "module.")))(X), logits)
    content = theirs(net, arch)
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if "running" not in k and "fc" not in k}
    found = load(save(tmp_path / "ssl", content))
    wanted = sub_network(net, 1.0).train()
    torch.testing.assert_close(found(X), pooled(wanted, X))
    opened = open_pretrained(tmp_path / "ssl")
    assert opened.width is None and opened.net == net_of(arch) and not opened.has_statistics(1.0)
    with pytest.raises(InputError, match="do not fit"):
        key = "module.encoder_q.layer1.0.conv1.weight"
        load(
            save(
                tmp_path / "bad",
                {**content, "state_dict": {k: v for k, v in content["state_dict"].items() if k != key}},
            )
        )


LISTS = {
    "ssl_byol_us_cifar_resnet18": "us_cifar_resnet18",
    "ssl_simclr_us_cifar_resnet18": "us_cifar_resnet18",
    "ssl_byol_single_width_us_cifar_mobilenetv2": "us_cifar_mobilenetv2",
    "linear_us_cifar_resnet18_100": "us_cifar_resnet18",
    "calibrate_us_resnet18": "us_resnet18",
}


@pytest.mark.parametrize(("name", "arch"), LISTS.items())
def test_every_recorded_layout_is_read_strictly(recorded: Any, name: str, arch: str) -> None:
    """Each tensor has a value of its own, so that it is seen to come to its place."""
    keys = recorded.json("keys")[name]["keys"]
    state = {
        key: torch.full((1,) * len(shape), float(number)).expand(shape) if kind != "int" else torch.tensor(0)
        for number, (key, shape, kind) in enumerate(keys)
    }
    found = authors.parse({"arch": arch, "state_dict": state})
    assert found is not None and found.net == net_of(arch) and found.certain
    net = authors.build(found)
    own = net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in found.state.items())
    inner = [key for key in state if "encoder_q" in key or not key.startswith("module.encoder")]
    values = {float(value.flatten()[0]) for key, value in own.items() if value.is_floating_point() and value.numel()}
    left = {key for key in inner if state[key].is_floating_point() and float(state[key].flatten()[0]) not in values}
    bare = "calibrate" in name
    assert all(key.startswith(("module.predictor", "module.encoder_q.fc" if bare else "module.p")) for key in left)
    if arch == "us_cifar_resnet18":
        shown = authors.parse({"state_dict": state})
        assert (shown is None) == name.startswith("linear") or (shown is not None and shown.net == net_of(arch))


def test_others_files_are_not_taken() -> None:
    assert from_checkpoint({}) is None
    assert from_checkpoint({"state_dict": nn.Linear(2, 2).state_dict()}) is None
    assert from_checkpoint({"state_dict": {"encoder_q.conv1.weight": torch.zeros(4, 3, 3, 3)}}) is None
    assert from_checkpoint({"package": "ssql", "state_dict": {"encoder_q.conv1.weight": torch.zeros(1)}}) is None
    with pytest.raises(InputError, match="no tensor or layer of the authors' MobileNet-V2"):
        authors.parse(
            {"arch": "us_mobilenetv2", "state_dict": {"features.0.0.weight": X, "features.99.body.0.weight": X}}
        )


T = torch.ones(2)
ENTRIES = [
    ("classes", -1), ("classes", 2**40), ("classes", T), ("classes", "3"), ("arch", T), ("arch", None),
    ("package", T), ("input_size", T), ("input_size", [3, 8]), ("input_size", None), ("config", T), ("config", 5),
    ("config", {"SSL": {"SETTING": {"DIM": -1}}}), ("config", {"MODEL": {"ARCH": "us_nobody"}}), ("state_dict", T),
    ("config", {"MODEL": {"ARCH": "us_vit_giant_patch14_224"}}), ("state_dict", {"encoder_q.conv1.weight": 3}),
    ("state_dict", {}), ("format", T), ("format", 99), ("widths", None), ("widths", []), ("widths", [0.0]),
    ("config", {"MODEL": {"ARCH": "us_cifar_resnet8_1x1"}}), ("pretrained_cfg", "nan"),
    ("pretrained_cfg", {"mean": [1]}),
    ("widths", "1"), ("width", 2.0), ("width", T), ("width", "1"), ("width", {}),
]  # fmt: skip


UNFIT = ("width", {"conv1": 0.5})  # leaves out the other convolutions


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    return checkpoint_of(config_of())[0]


@pytest.mark.parametrize(
    ("name", "value", "reader"),
    [*((*entry, load) for entry in ENTRIES), *((*entry, open_pretrained) for entry in (*ENTRIES[::4], UNFIT))],
)
def test_entries_of_another_kind(
    saved: dict[str, Any], tmp_path: Path, name: str, value: Any, reader: Callable[[Path], Any]
) -> None:
    with pytest.raises(InputError) as found:
        reader(save(tmp_path / "bad.pth.tar", saved | {name: value}))
    assert "\n" not in str(found.value) and "bad.pth.tar" in str(found.value)


@pytest.mark.parametrize("how", ["not finite", "another shape", "integers", "a key less", "cut off"])
def test_a_damaged_file(saved: dict[str, Any], tmp_path: Path, how: str) -> None:
    state, key = dict(saved["state_dict"]), "encoder_q.conv1.weight"
    new = {"not finite": state[key] * torch.nan, "another shape": state[key][:3], "integers": state[key].int()}
    changed = (
        state | {key: new[how]} if how in new else {k: v for k, v in state.items() if k != key or how != "a key less"}
    )
    path = save(tmp_path / "bad.pth.tar", saved | {"state_dict": changed})
    if how == "cut off":
        path.write_bytes(path.read_bytes()[:20000])
    for reader in (load, open_pretrained):
        with pytest.raises(InputError, match=r"bad\.pth\.tar") as found:
            reader(path)
        assert "\n" not in str(found.value)
