"""`s2bnn export`: what `lowbit.load` makes of its files computes what the checkpoint computes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from torch import nn

from lowbit.evaluate.features import pooled
from lowbit.export.codes import read_codes
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.quant.binary import binarize_, step_of
from s2bnn.load import header, open_student

S2bnn = Callable[..., Result]
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("form", "file"), [("packed", "packed"), ("float", "network"), ("backbone", "backbone")])
@pytest.mark.parametrize("step", [1, 2])
def test_a_backbone(
    s2bnn: S2bnn, checkpoint: Callable[..., Any], encoder: Any, tmp_path: Path, form: str, file: str, step: int
) -> None:
    torch.save(checkpoint(step), tmp_path / "a")
    said = s2bnn("export", tmp_path / "a", "--format", form, "--output", tmp_path / "out").stdout
    path = tmp_path / f"out/{file}.safetensors"
    assert said == f"{path} {path.stat().st_size:,} bytes\n"
    net: Any = load(path)
    expected = pooled(encoder(step).eval(), X)
    assert torch.allclose(net(X), expected, rtol=1e-6, atol=1e-6) and net.pretrained_cfg["input_size"] == (3, 8, 8)
    if form != "packed":
        assert step_of(net) == step and torch.equal(net(X), expected)
        assert open_student(path).step == step


def test_a_classifier_keeps_its_last_layer(
    s2bnn: S2bnn, checkpoint: Callable[..., Any], encoder: Any, tmp_path: Path
) -> None:
    net = encoder(2, nn.Linear(64, 5)).eval()
    said = {**header("cifar_resnet8_1x1", 2, checkpoint(2)[ENTRY], "classifier", 5), "state_dict": net.state_dict()}
    torch.save(said, tmp_path / "a")
    for form, file in (("packed", "packed"), ("float", "network")):
        s2bnn("export", tmp_path / "a", "--format", form, "--output", tmp_path / form)
        assert torch.allclose(load(tmp_path / form / f"{file}.safetensors")(X), net(X), rtol=1e-5, atol=1e-6)


@pytest.mark.heavy
def test_reactnet_a_takes_a_bit_for_each_binary_weight(s2bnn: S2bnn, tmp_path: Path) -> None:
    """28,253,184 bits are 3.53 MB; with the 10,912 scales within 1.05 of that."""
    net = binarize_(create_model("reactnet_a", num_classes=0), 2)
    torch.save(net.state_dict(), tmp_path / "a")
    assert "--step" in s2bnn("export", tmp_path / "a", "--output", tmp_path / "out", code=2).stderr
    s2bnn("export", tmp_path / "a", "--step", 2, "--output", tmp_path / "out")
    path = tmp_path / "out/packed.safetensors"
    head, tensors = read_codes(path)
    assert tensors["codes"].numel() == 28_253_184 // 8
    scales = sum(torch.Size(said["scale"]).numel() for said in head["coded"].values())
    assert scales == 10_912 and tensors["codes"].numel() + 4 * scales < 1.05 * 28_253_184 / 8
    assert path.stat().st_size < 1.15 * 28_253_184 / 8  # with all that is real, and how it is read
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected, found = net.eval()(x), load(path)(x)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_refused(s2bnn: S2bnn, checkpoint: Callable[..., Any], tmp_path: Path) -> None:
    torch.save(checkpoint(0), tmp_path / "a")
    line = ("export", tmp_path / "a")
    assert "--output is missing" in s2bnn(*line, code=2).stderr
    assert "no bits to pack: use --format float" in s2bnn(*line, "--output", tmp_path / "out", code=2).stderr
    assert "not 2" in s2bnn(*line, "--output", tmp_path / "out", "--step", 2, code=2).stderr
    assert not (tmp_path / "out").exists()
    s2bnn(*line, "--output", tmp_path / "out", "--format", "float")
    assert "--overwrite" in s2bnn(*line, "--output", tmp_path / "out", "--format", "float", code=2).stderr
