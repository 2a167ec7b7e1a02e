"""Backbones read by content, whatever the file is called; ranges from fixed pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import save_file
from torch import nn

from lowbit.data.fixed import seeded_subset
from lowbit.data.recipe import DIGITS, plain
from lowbit.errors import InputError
from lowbit.evaluate.features import pooled
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.quant.bitwidths import activations, in_mode, set_bits_
from lowbit.train.session import Session
from ssql.config import Calibration, Quant
from ssql.evaluation import Pretrained, calibrate, fixed_pictures, open_pretrained, quantize_backbone_

ARCH = "cifar_resnet8_1x1"


def equal(model: nn.Module, state: dict[str, Any], prefix: str = "") -> bool:
    own = model.state_dict()
    return len(own) > 20 and all(torch.equal(value, state[prefix + key]) for key, value in own.items())


def test_a_checkpoint_of_ours_tells_all(digits_run: tuple[Path, Result], tmp_path: Path) -> None:
    path = digits_run[0] / "checkpoint.pth.tar"
    saved = torch.load(path, weights_only=True)
    odd = tmp_path / "pytorch_Quant.safetensors.bin"  # names that misled the authors' program
    odd.write_bytes(path.read_bytes())
    found = open_pretrained(odd)
    assert (found.arch, found.size, found.normalization) == (ARCH, (3, 8, 8), DIGITS)
    assert found.config is not None and found.config.QUANT.W.BIT_RANGE == (2, 9)
    assert equal(found.model, saved["state_dict"], "encoder_q.") and not found.model.training
    assert found.model(torch.zeros(2, 3, 8, 8)).shape == (2, 64)
    with pytest.raises(InputError, match="not a resnet18"):
        open_pretrained(path, "resnet18")


def test_the_backbone_file_and_plain_tensors(digits_run: tuple[Path, Result], tmp_path: Path) -> None:
    reference = open_pretrained(digits_run[0] / "checkpoint.pth.tar").model.state_dict()
    found = open_pretrained(digits_run[0] / "backbone.safetensors")
    assert equal(found.model, reference) and (found.size, found.config) == ((3, 32, 32), None)
    save_file(reference, tmp_path / "plain")
    with pytest.raises(InputError, match="--arch"):
        open_pretrained(tmp_path / "plain")
    assert equal(open_pretrained(tmp_path / "plain", ARCH, (3, 8, 8)).model, reference)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.model."])
def test_a_classifier_of_any_width_is_left_out(tmp_path: Path, prefix: str) -> None:
    state = create_model(ARCH, num_classes=7).state_dict()
    torch.save({"state_dict": {prefix + key: value for key, value in state.items()}}, tmp_path / "net.pt")
    assert equal(open_pretrained(tmp_path / "net.pt", ARCH).model, dict(state))


def test_floats_of_another_package_are_read(tmp_path: Path) -> None:
    state = create_model(ARCH, num_classes=10).state_dict()
    held = {f"module.{key}": value for key, value in state.items()} | {"module.relu.alpha": torch.ones(1)}
    torch.save({"format": 1, "package": "bsq", "arch": ARCH, "state_dict": held}, tmp_path / "net.pth.tar")
    assert equal(open_pretrained(tmp_path / "net.pth.tar").model, dict(state))


def test_the_authors_layouts(tmp_path: Path, recorded: Any) -> None:
    for name, arch in (("cifar_resnet18_ssql_simsiam_cifar", "cifar_resnet18"), ("cifar_resnet18_moco_cifar", None)):
        theirs = {key: torch.ones(shape) for key, shape in recorded.json("keys")["ssl_checkpoint"][name]}
        theirs = {key: value.long() if key.endswith(("tracked", "ptr")) else value for key, value in theirs.items()}
        torch.save({"epoch": 3, "state_dict": theirs}, tmp_path / "theirs.pth.tar")
        found = open_pretrained(tmp_path / "theirs.pth.tar", arch)
        assert (found.arch, found.size, found.config) == ("cifar_resnet18", (3, 32, 32), None)
        assert all(bool((value == 1).all()) for value in found.model.state_dict().values())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: {f"other.{key}": value for key, value in state.items()}, "none of its tensors"),
        (lambda state: {key: value for key, value in state.items() if key != "layer2.0.bn1.bias"}, "layer2.0.bn1.bias"),
        (lambda state: state | {"layer2.1.conv1.weight": torch.zeros(2)}, "layer2.1.conv1.weight"),
        (lambda state: state | {"conv1.weight": torch.zeros(8, 3, 3, 3)}, "conv1.weight"),
        (lambda state: state | {"conv1.weight": torch.zeros(16, 3, 3, 3).int()}, "integers"),
        (lambda state: {"package": "bsq", "state_dict": {f"{key}s": value for key, value in state.items()}}, "none of"),
        (lambda state: {"state_dict": state, "package": "bsq", "arch": "resnet18"}, "not a cifar_resnet8_1x1"),
        (lambda state: {"state_dict": {"conv1.weight": 3}}, "no state_dict"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Callable[[dict[str, Any]], Any], said: str) -> None:
    torch.save(change(dict(create_model(ARCH, num_classes=0).state_dict())), tmp_path / "net.pt")
    with pytest.raises(InputError, match=r"net\.pt") as found:
        open_pretrained(tmp_path / "net.pt", ARCH)
    assert said in str(found.value) and "\n" not in str(found.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a file"):
        open_pretrained(tmp_path / "none")
    state = create_model(ARCH, num_classes=0).state_dict()
    save_file(state | {"conv1.weight": state["conv1.weight"] * torch.nan}, tmp_path / "nan")
    with pytest.raises(InputError, match=r"NaN or infinity in conv1\.weight"):
        open_pretrained(tmp_path / "nan", ARCH)
    (tmp_path / "cut").write_bytes(b"\x40\0\0\0\0\0\0\0{cut")
    with pytest.raises(InputError, match="damaged"):
        open_pretrained(tmp_path / "cut", ARCH)


def test_pins_of_the_authors_list_need_no_head() -> None:
    listed = {"conv1": {"w": 6, "a": 5}, "fc.0": {"w": 8, "a": 0}, "layer1.0.conv2": {"w": 0, "a": 0}}
    backbone = Pretrained(model=create_model(ARCH, num_classes=0), arch=ARCH, size=(3, 8, 8), config=None)
    net: Any = set_bits_(quantize_backbone_(backbone, Quant(BIT_CONFIG=(listed,))), 4, 3)
    bits = (net.conv1, net.layer1[0].conv1, net.layer2[0].conv2)
    assert [int(layer.weight_quantizer.w_bits) for layer in bits] == [6, 4, 4]
    assert type(net.layer1[0].conv2) is nn.Conv2d
    found = {int(activation.a_bits) for activation in activations(net).values()}
    assert found == {5, 3}
    with pytest.raises(InputError, match="layer9"):
        quantize_backbone_(backbone, Quant(BIT_CONFIG=({"layer9": {"w": 2}},)))


def test_calibration_sees_the_same_pictures_each_time() -> None:
    with Session("ssql", RunOptions(workers=0, limit_train=500), "digits") as session:
        pictures = session.pictures("train")
        some = seeded_subset(pictures, 40, 0)
        other = seeded_subset(pictures, 40, 1)
        assert len(some) == 40 and not torch.equal(some.labels, other.labels)
        assert len(seeded_subset(pictures, 1024, 0)) == 500
        torch.manual_seed(0)
        backbone = Pretrained(model=create_model(ARCH, num_classes=0), arch=ARCH, size=(3, 8, 8), config=None)
        net = quantize_backbone_(backbone, Quant()).eval()
        ranges = []
        for count in (40, 40, 500):
            fixed = fixed_pictures(Calibration(PICTURES=count), pictures, session)
            calibrate(net, fixed, plain(DIGITS), session)
            assert len(fixed) == count
            ranges.append([float(a.observer.high) for a in activations(net).values()])
        assert ranges[0] == ranges[1] and max(ranges[0]) > 0
        assert all(few <= many for few, many in zip(ranges[0], ranges[2], strict=True)) and ranges[0] != ranges[2]
        with torch.no_grad(), in_mode(set_bits_(net, 8, 8), "quantized"):
            assert pooled(net, torch.zeros(2, 3, 8, 8)).isfinite().all()
