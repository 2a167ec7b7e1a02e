"""`s2bnn report`: the papers' figures of ReActNet-A, a count by hand, files at their step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.models.create import create_model

S2bnn = Callable[..., Result]


def test_reactnet_a(s2bnn: S2bnn, tmp_path: Path) -> None:
    said = s2bnn("report", "--output", tmp_path / "r").stdout
    found = json.loads((tmp_path / "r/report.json").read_text())
    expected = {
        "real_macs": 11_862_016, "binary_macs": 4_816_896_000, "ops": 87_126_016, "parameters": 29_343_592,
        "binary_parameters": 28_253_184, "step": 2, "student": "reactnet_a", "input_size": [3, 224, 224],
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert "real multiply-accumulates 11,862,016, binary 4,816,896,000, OPs 87,126,016" in said
    assert "parameters 29,343,592, binary 28,253,184" in said
    assert (tmp_path / "r/table.md").read_text() == said
    layers = {layer["name"]: layer for layer in found["layers"]}
    assert layers["feature.0.conv1"]["macs"] == 10_838_016 and layers["feature.0.conv1"]["binary_macs"] == 0
    assert layers["feature.13.binary_pw"]["binary_macs"] == 51_380_224
    assert (layers["feature.13.binary_pw"]["bits"], layers["feature.13.binary_pw"]["input_bits"]) == (1, 1)
    assert sum(layer["parameters"] for layer in found["layers"]) == found["parameters"]
    assert "--overwrite" in s2bnn("report", "--output", tmp_path / "r", code=2).stderr


def test_other_sizes_classes_and_steps(s2bnn: S2bnn, tmp_path: Path) -> None:
    """All but the last layer grow with the pixels."""
    s2bnn("report", "--image-size", 192, "--classes", 10, "--output", tmp_path / "a")
    found = json.loads((tmp_path / "a/report.json").read_text())
    share = (192 / 224) ** 2
    assert found["binary_macs"] == round(4_816_896_000 * share)
    assert found["real_macs"] == round(10_838_016 * share) + 10_240
    assert found["parameters"] == 29_343_592 - 1_025_000 + 10_250
    s2bnn("report", "--step", 1, "--student", "cifar_resnet8_1x1", "--output", tmp_path / "b")
    found = json.loads((tmp_path / "b/report.json").read_text())
    assert found["binary_macs"] == found["binary_parameters"] == 0 and found["ops"] == found["real_macs"] > 10**6
    error = s2bnn("report", "--image-size", 225, "--output", tmp_path / "c", code=2).stderr
    assert "multiples of 32" in error and len(error.splitlines()) == 1 and not (tmp_path / "c").exists()


def test_a_checkpoint_is_counted_as_it_is(s2bnn: S2bnn, checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(checkpoint(2), tmp_path / "a")
    s2bnn("report", tmp_path / "a", "--output", tmp_path / "r")
    found = json.loads((tmp_path / "r/report.json").read_text())
    assert (found["student"], found["step"], found["input_size"]) == ("cifar_resnet8_1x1", 2, [3, 8, 8])
    assert found["real_macs"] == 8 * 8 * 27 * 16  # the stem; the projector is none of the net's
    assert "not 1: leave out --step" in s2bnn("report", tmp_path / "a", "--step", 1, code=2).stderr


@pytest.mark.parametrize(
    ("given", "said"), [(("--step", 3), "0<=x<=2"), (("--student", "resnt18"), "resnet18"), (("no_file",), "no_file")]
)
def test_refused(s2bnn: S2bnn, given: tuple[object, ...], said: str) -> None:
    assert said in s2bnn("report", *given, code=2).stderr


@pytest.mark.parametrize("size", [[8, 8], [3, 0, 8], "8", [3, 8, 10**9]])
def test_a_file_of_another_package_says_its_size_wrongly(s2bnn: S2bnn, tmp_path: Path, size: Any) -> None:
    state = create_model("cifar_resnet8_1x1", num_classes=2).state_dict()
    said = {"package": "another", "arch": "cifar_resnet8_1x1", "state_dict": state, "input_size": size}
    torch.save(said, tmp_path / "net.pth.tar")
    assert "net.pth.tar: its input_size is" in s2bnn("report", tmp_path / "net.pth.tar", code=2).stderr
