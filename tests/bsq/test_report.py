"""`bsq report`: the table, the JSON and the picture, against a count by hand."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch
from click.testing import Result
from matplotlib.text import Text
from PIL import Image

import lowbit
from bsq.commands.report import describe, figure_of, table
from bsq.network import bit_layers, to_bits_, to_finetune_
from lowbit.models.create import create_model

Bsq = Callable[..., Result]


def test_numbers_by_hand() -> None:
    """A net of one 3-bit layer: codes 7, -4, 0, 1 of 2^3 - 1."""
    layer = torch.nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[7.0, -4.0, 0.0, 1.0]]))
        layer.bias.fill_(0.0)
    net = torch.nn.Sequential(layer)
    report = describe(to_finetune_(to_bits_(net, 3)), (2, 3, 4))
    assert report["layers"]["0"]["macs"] == 6 * 4 and report["cost"]["bops"] == 6 * 4 * 4 * 32
    assert report["layers"]["0"]["ones_percent"]["weight"] == [50.0, 25.0, 50.0]
    assert (report["layers"]["0"]["bits"], report["layers"]["0"]["stored_bits"]) == (3, 4)
    assert report["layers"]["0"]["bias_bits"] == 0  # dead: it is counted, and costs nothing
    assert report["weights"] == 5 and report["total_bits"] == 12 and report["total_bits_signed"] == 16
    assert report["compression"] == pytest.approx(5 * 32 / 12)
    assert report["compression_signed"] == pytest.approx(5 * 32 / 16)
    assert report["compression_all"] == pytest.approx(5 * 32 / (16 + 2 * 32))  # the two scales are floats


def test_planes_that_are_not_binary_are_told() -> None:
    net = to_bits_(create_model("cifar_resnet8_1x1"), 4)
    with torch.no_grad():
        next(iter(bit_layers(net).values())).pweight.mul_(0.7)
    report = describe(net, (3, 8, 8))
    assert not report["layers"]["conv1"]["binary"] and report["layers"]["fc"]["binary"]
    lines = [line for line in table(report) if "not re-quantised" in line]
    assert len(lines) == 1 and lines[0].startswith("conv1")


def test_table_json_and_picture(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    model = digits_run / "bits8/checkpoint.pth.tar"
    said = bsq("report", "--model", model, "--output", tmp_path / "r").stdout
    report = json.loads((tmp_path / "r/report.json").read_text())
    top1 = json.loads((digits_run / "bits8/result.json").read_text())["top1"]
    assert report == {**describe(lowbit.load(model), (3, 8, 8)), "top1": top1}
    names = list(report["layers"])
    assert names[0] == "conv1" and names[-1] == "fc" and len(names) == 8
    assert [line.split()[0] for line in said.splitlines()[1 : 1 + len(names)]] == names
    assert f"compression {report['compression']:.2f}x" in said and "shortcuts" in said
    assert report["layers"]["layer1.0.conv2"]["input_bits"] == 4 and report["cost"]["input_size"] == [3, 8, 8]
    assert (tmp_path / "r/config.json").exists()
    with Image.open(tmp_path / "r/report.png") as picture:
        assert min(picture.size) > 200


def test_without_output_nothing_is_written(
    digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "layer3.0.conv2" in bsq("report", "--model", digits_run / "bits8/checkpoint.pth.tar").stdout
    assert not list(tmp_path.iterdir())


def test_the_accuracy_is_that_of_the_net_in_the_file(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    """Of a conversion, of a bit training, whose last net is re-quantised after its last epoch, and of fine-tuning."""
    line = ("-d", "digits", "-a", "cifar_resnet8_1x1", "--epochs", 1, "--limit-train", 100, "--act", 4, "--model")
    bsq("cifar_prune_STE", *line, digits_run / "bits8/checkpoint.pth.tar", "-c", tmp_path / "bits")
    bsq("cifar_finetune", *line, tmp_path / "bits/checkpoint.pth.tar", "-c", tmp_path / "ft")
    for folder in (digits_run / "bits8", tmp_path / "bits", tmp_path / "ft"):
        out = tmp_path / f"report of {folder.name}"
        said = bsq("report", "--model", folder / "checkpoint.pth.tar", "--output", out).stdout
        top1 = json.loads((folder / "result.json").read_text())["top1"]
        assert json.loads((out / "report.json").read_text())["top1"] == top1 and f"top-1 {top1:.2f} %" in said


def test_a_picture_of_many_layers(tmp_path: Path) -> None:
    """Of ResNet-18: no text lies on another, or runs over the edge."""
    net = to_bits_(create_model("resnet18", num_classes=10), 3)
    figure = figure_of({**describe(net, (3, 32, 32)), "top1": 91.5})
    figure.draw_without_rendering()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    boxes = {text.get_text(): text.get_window_extent() for text in texts}
    assert "layer4.1.conv2" in boxes and any("91.50 %" in text for text in boxes)
    for name, box in boxes.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, name
    pairs = [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert not pairs
