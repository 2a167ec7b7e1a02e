"""Which encoder of a file is read, what is left out, converted or refused; the matrix is in test_any_file."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.create import create_model
from lowbit.models.layouts import resnet_of
from lowbit.models.weight_file import Weights, read_weights
from lowbit.models.weights import branch_of, load_, open_backbone

ARCH = "cifar_resnet8_1x1"


def drawn(seed: int, classes: int = 10) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return dict(create_model(ARCH, num_classes=classes).state_dict())


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


def opened(content: Mapping[str, Any], tmp_path: Path, arch: str | None = ARCH) -> dict[str, Tensor]:
    torch.save(content, tmp_path / "net.pt")
    return dict(open_backbone(tmp_path / "net.pt", arch).model.state_dict())


def same(found: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    return len(found) > 20 and all(torch.equal(value, state[key]) for key, value in found.items())


A, B = drawn(0), drawn(1)
BAD = {**A, "conv1.weight": A["conv1.weight"][:3]}
LESS = {key: value for key, value in A.items() if key != "bn1.bias"}
DINO = {"head.last_layer.weight_g": torch.ones(4, 1)}


@pytest.mark.parametrize(
    ("content", "prefix"),
    [
        ({"state_dict": under("encoder_q.", A) | under("encoder_k.", B)}, "state_dict.encoder_q."),
        ({"state_dict": under("backbone.", A) | under("momentum_backbone.", B)}, ""),
        ({"student": under("module.backbone.", B), "teacher": under("backbone.", A)}, "teacher.backbone."),
        ({"student": under("module.", A), "teacher": B}, "student.module."),
        ({"student": under("backbone.", B), "teacher": under("backbone.", A) | DINO}, "teacher.backbone."),
        ({"state_dict": B, "state_dict_ema": A}, "state_dict_ema."),
        ({"model": under("encoder_q.", B), "model_ema": under("encoder_q.", A)}, "model_ema.encoder_q."),
        ({"teacher": A}, "teacher."),
        ({"net": A, "model": A}, ""),
    ],
)  # fmt: skip
def test_one_encoder_is_chosen_and_reported(
    content: dict[str, Any], prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert same(opened(content, tmp_path), A)
    assert (f"under {prefix} is read" in caplog.text) if prefix else ("momentum" in caplog.text or not caplog.text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"state_dict": under("encoder_q.", BAD) | under("encoder_k.", A)}, "shape"),
        ({"model": A, "net": B}, "two encoders"),
        ({"first": A, "second": B}, "several encoders"),
        ({"state_dict": under("encoder_q.", LESS) | under("encoder_k.", A)}, "lacks bn1.bias"),
        ({**A, "conv1.weight": A["conv1.weight"].to(torch.complex64)}, "complex"),
        ({**A, "conv1.weight": A["conv1.weight"] > 0}, "integers"),
        ({**A, "conv1.weight": A["conv1.weight"].to_sparse()}, "sparse"),
        ({**A, "bn1.bias": A["bn1.bias"] / 0}, "NaN or infinity in bn1.bias"),
        ({**A, "layer3.1.conv1.weight": A["conv1.weight"]}, "has layer3.1.conv1.weight, which"),
        ({"epoch": 3}, "no state_dict"),
    ],
)  # fmt: skip
def test_refused(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"net\.pt") as found:
        opened(content, tmp_path)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_halves_are_converted_and_counters_may_lack(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    halves = {k: v.bfloat16() if v.is_floating_point() else v for k, v in A.items() if not k.endswith("tracked")}
    found = opened(halves, tmp_path)
    assert all(torch.equal(found[key], halves[key].float()) for key in halves if not key.startswith("fc"))
    assert all(int(value) == 0 for key, value in found.items() if key.endswith("tracked"))
    assert "bfloat16 are converted" in caplog.text


def test_what_a_file_says_of_its_net(tmp_path: Path) -> None:
    assert same(opened({"arch": ARCH, "state_dict": A}, tmp_path, None), A)
    assert same(opened({"arch": "resnet18", "state_dict": A}, tmp_path), A)  # of others: the tensors decide
    with pytest.raises(InputError, match="says that it is a resnet18"):
        opened({"arch": "resnet18", "state_dict": A}, tmp_path, "cifar_resnet14_1x1")
    with pytest.raises(InputError, match=f"holds a {ARCH}, not a resnet18"):
        opened({"arch": ARCH, "state_dict": A, "package": "toy"}, tmp_path, "resnet18")
    with pytest.raises(InputError, match="--arch"):
        opened({"arch": "resnet_of_mine", "state_dict": A}, tmp_path, None)
    save_file(A, tmp_path / "s", {"lowbit.backbone": "no JSON"})
    with pytest.raises(InputError, match="metadata is damaged"):
        open_backbone(tmp_path / "s", ARCH)


def give_(net: nn.Module, content: dict[str, Tensor], new: bool = False) -> None:
    weights = Weights("net.pt", content)
    load_(net, weights, branch_of(weights, net), new_head=new)


def test_a_last_layer_is_the_files_or_drawn_where_it_is_trained(caplog: pytest.LogCaptureFixture) -> None:
    for content, new, fits in (
        (A, False, True),
        (drawn(0, 7), True, False),
        (drawn(0, 0), True, False),
        (under("encoder_q.", A), True, False),  # a projector there, of the same size by chance
    ):
        net = create_model(ARCH, num_classes=10)
        own = net.get_parameter("fc.weight").clone()
        give_(net, content, new)
        bare = {key.removeprefix("encoder_q."): value for key, value in content.items()}
        assert same({k: v for k, v in net.state_dict().items() if k[:2] != "fc"}, bare)
        assert torch.equal(net.get_parameter("fc.weight"), A["fc.weight"] if fits else own)
        assert fits or "the last layer (fc.bias) is drawn" in caplog.text
        caplog.clear()
    for content, said in ((drawn(0, 7), "7 classes, and 10 are needed"), (drawn(0, 0), "without the last layer")):
        with pytest.raises(InputError, match=said):
            give_(create_model(ARCH, num_classes=10), content)


def test_lightly_numbers_are_the_children_in_order(tmp_path: Path) -> None:
    net = create_model(ARCH, num_classes=10)
    children = nn.Sequential(*list(net.children())[:-1])
    state = under("backbone.", children.state_dict()) | {"projection_head.layers.0.weight": torch.ones(2, 2)}
    assert same(opened({"state_dict": state}, tmp_path), net.state_dict())
    with pytest.raises(InputError, match="none of its tensors"):
        opened(
            {"state_dict": {key: value for key, value in state.items() if not key.startswith("backbone.1.")}}, tmp_path
        )


@pytest.mark.parametrize(
    "arch", ["cifar_resnet20_1x1", "cifar_resnet18", "cifar_resnet50", "resnet18", "resnet34", "resnet101"]
)
def test_a_resnet_by_its_keys(arch: str) -> None:
    with torch.device("meta"):
        state = create_model(arch, num_classes=0).state_dict()
    assert resnet_of(state) == arch
    assert resnet_of({key: value for key, value in state.items() if "layer2" not in key}) is None


def test_a_file_of_ours_is_judged_whole(tmp_path: Path) -> None:
    torch.save({"package": "toy", "state_dict": A, "optimizer": {"m": torch.tensor(torch.nan)}}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"NaN or infinity in optimizer\.m"):
        read_weights(tmp_path / "net.pt")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["encoder_k.bn2.weight", "relu2.weight", "encoder_k.bn1.running_var"])
def test_weights_that_are_no_floats_are_refused_wherever_they_are(
    tmp_path: Path, dtype: torch.dtype, name: str
) -> None:
    """Also in an encoder that is not read, and in a layer that the net lacks."""
    torch.save({"state_dict": {**A, name: torch.ones(8).to(dtype)}}, tmp_path / "net.pt")
    with pytest.raises(InputError, match=rf"{name} holds (integers|complex numbers|half-precision floats) "):
        read_weights(tmp_path / "net.pt")
