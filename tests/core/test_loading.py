"""`lowbit.load`: by content, through the methods' entry points, and what it refuses."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import lowbit
from lowbit import loading
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model


class Method:
    """An entry point of a method whose checkpoints say package: toy."""

    name = "toy"

    @staticmethod
    def load() -> Any:
        def from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module | None:
            return nn.Linear(2, checkpoint["out"]) if checkpoint.get("package") == "toy" else None

        return from_checkpoint


@pytest.fixture
def toy_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "entry_points", lambda group: (Method(),) if group == "lowbit.methods" else ())


def test_the_name_is_a_function_whatever_was_imported_before() -> None:
    assert callable(lowbit.load) and lowbit.load is loading.load


@pytest.mark.usefixtures("toy_method")
def test_a_checkpoint_goes_to_its_method(tmp_path: Path) -> None:
    torch.save({"package": "toy", "out": 5}, tmp_path / "c.pth.tar")
    model = lowbit.load(str(tmp_path / "c.pth.tar"))
    assert isinstance(model, nn.Linear) and model.out_features == 5 and not model.training


@pytest.mark.usefixtures("toy_method")
@pytest.mark.parametrize(
    ("content", "says"), [({"package": "other"}, "lowbit-other"), ({"x": 1}, "no package"), ([1], "list")]
)
def test_nobodys_checkpoint(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "c.pth.tar")
    with pytest.raises(InputError, match=says):
        lowbit.load(tmp_path / "c.pth.tar")


@pytest.mark.parametrize("name", ["missing.pth.tar", "missing.safetensors"])
def test_missing(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="missing"):
        lowbit.load(tmp_path / name)


def test_backbone_round_trip_and_in_timm(tmp_path: Path) -> None:
    model, path = create_model("cifar_resnet8_1x1", num_classes=7).eval(), tmp_path / "backbone.safetensors"
    save_backbone(model, path, "cifar_resnet8_1x1")
    x = torch.randn(2, 3, 16, 16)
    expected = model.forward_head(model.forward_features(x), pre_logits=True)
    assert torch.equal(lowbit.load(path)(x), expected)
    theirs = timm.create_model("cifar_resnet8_1x1", num_classes=0, checkpoint_path=str(path)).eval()
    assert torch.equal(theirs(x), expected)


def test_damaged_backbone(tmp_path: Path) -> None:
    path = tmp_path / "backbone.safetensors"
    save_backbone(create_model("cifar_resnet8_1x1"), path, "cifar_resnet8_1x1")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match="damaged"):
        lowbit.load(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        lowbit.load(path)
    save_backbone(create_model("cifar_resnet8_1x1"), path, "cifar_resnet8_1x1")
    renamed = path.rename(tmp_path / "renamed")  # the content tells
    assert isinstance(lowbit.load(renamed), nn.Module)
    save_file({"conv1.weight": torch.zeros(1)}, path, {"lowbit.backbone": '{"arch": "cifar_resnet8_1x1"}'})
    with pytest.raises(InputError, match="lacks bn1"):
        lowbit.load(path)


def test_a_backbone_needs_its_own_net(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no cifar_resnet14_1x1 .* layer1\.1\.conv1\.weight is missing"):
        save_backbone(create_model("cifar_resnet8_1x1"), tmp_path / "b.safetensors", "cifar_resnet14_1x1")
    without: Any = create_model("cifar_resnet8_1x1")
    without.bn1 = nn.BatchNorm2d(16, track_running_stats=False)
    with pytest.raises(InputError, match=r"its bn1\.running_mean is missing"):
        save_backbone(without, tmp_path / "b.safetensors", "cifar_resnet8_1x1")
    without.bn1 = nn.BatchNorm2d(8)
    with pytest.raises(InputError, match=r"its bn1\.weight has shape \(8,\), not \(16,\)"):
        save_backbone(without, tmp_path / "b.safetensors", "cifar_resnet8_1x1")
    assert not list(tmp_path.iterdir())
