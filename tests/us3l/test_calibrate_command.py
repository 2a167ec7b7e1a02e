"""`us3l calibrate`: a file for each width, with its statistics and the width."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from PIL import Image

from lowbit.data.batch import Batch
from lowbit.data.fixed import FixedPictures, shuffled
from lowbit.data.geometry import RandomResizedCrop
from lowbit.data.recipe import IMAGENET, Recipe
from lowbit.data.views import ssl_views
from lowbit.loading import load
from lowbit.slim.layers import at_width
from us3l.evaluation import open_pretrained

Us3l = Callable[..., Result]
X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CONFIG = """\
MODEL: {ARCH: us_cifar_resnet8_1x1, INPUTSHAPE: [8, 8], OFA: {WIDTH_MULT: 0.75}}
TRAIN: {DATASET: digits}
"""


@pytest.fixture(scope="module")
def line(digits_run: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    path = tmp_path_factory.mktemp("config") / "calibrate.yaml"
    path.write_text(CONFIG)
    checkpoint = digits_run[0] / "checkpoint.pth.tar"
    return ("calibrate", "--config", path, "--limit-train", 40, f"MODEL.PRETRAINED={checkpoint}")


@torch.no_grad()
def test_a_file_for_each_width(us3l: Us3l, line: tuple[object, ...], tmp_path: Path, digits_run: Any) -> None:
    out = tmp_path / "out"
    said = us3l(*line, "--widths", "0.25:0.5:0.25,0.26", "--output", out).stdout
    names = [f"checkpoint_width_{width}.pth.tar" for width in ("0.25", "0.26", "0.5")]
    assert said.split() == [str(out / name) for name in names]
    result = json.loads((out / "result.json").read_text())
    assert [row["variant"] for row in result["rows"]] == ["0.25", "0.26", "0.5"] and result["calibration"] == 40
    assert result["rows"][0]["macs"] == result["rows"][1]["macs"] < result["rows"][2]["macs"]
    contents = [torch.load(out / name, weights_only=True) for name in names]
    assert [content["width"] for content in contents] == [0.25, 0.26, 0.5] and contents[0]["widths"] == [0.25, 1.0]
    first, second, third = (content["state_dict"] for content in contents)
    assert all(torch.equal(first[key], second[key]) for key in first)  # one sub-network
    weights = torch.load(digits_run[0] / "checkpoint.pth.tar", weights_only=True)["state_dict"]
    for key, value in third.items():
        assert torch.equal(value, weights[key]) or "running" in key or "num_batches" in key
    assert torch.equal(third["encoder_q.bn1.running_mean"][8:], torch.zeros(8))
    opened = open_pretrained(out / names[2])
    assert opened.width == 0.5 and opened.config is not None and opened.config.SSL.TYPE == "SimCLR_Momentum"
    with at_width(opened.model, 0.5):
        assert torch.equal(load(out / names[2])(X), opened.model(X))


def test_the_files_of_others_get_the_commands_config(us3l: Us3l, line: tuple[object, ...], tmp_path: Path) -> None:
    """At MODEL.OFA.WIDTH_MULT; only the width of the file is known to be trained."""
    net = open_pretrained(str(line[-1]).partition("=")[2]).model
    path = tmp_path / "theirs"
    state = {f"module.encoder_q.{key}": value for key, value in net.state_dict().items() if "running" not in key}
    torch.save({"arch": "us_cifar_resnet8_1x1", "state_dict": state}, path)
    us3l(*line[:-1], f"MODEL.PRETRAINED={path}", "MODEL.ARCH=", "--output", tmp_path / "out")
    opened = open_pretrained(tmp_path / "out/checkpoint_width_0.75.pth.tar")
    assert (opened.width, opened.widths, opened.net.arch) == (0.75, (0.75,), "us_cifar_resnet8_1x1")
    assert opened.size == (3, 8, 8) and load(tmp_path / "out/checkpoint_width_0.75.pth.tar")(X).shape == (3, 48)


@torch.no_grad()
def test_one_width_of_a_switchable_net(us3l: Us3l, line: tuple[object, ...], listed_run: Path, tmp_path: Path) -> None:
    """The other widths of its list keep their statistics, and the file still has all of them."""
    given = ("MODEL.ARCH=", f"MODEL.PRETRAINED={listed_run}", "--widths", "0.5", "--output", tmp_path / "out")
    us3l(*line[:-1], *given)
    before, after = open_pretrained(listed_run).model, open_pretrained(tmp_path / "out/checkpoint_width_0.5.pth.tar")
    assert sorted(after.widths or ()) == [0.5, 1.0] and after.net.kind == "switchable"
    outputs = []
    for width in (0.5, 1.0):
        with at_width(before, width), at_width(after.model, width):
            outputs.append((before(X), after.model(X)))
    assert [torch.equal(*pair) for pair in outputs] == [False, True]
    assert torch.equal(load(tmp_path / "out/checkpoint_width_0.5.pth.tar")(X), outputs[0][1])


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("MODEL.PRETRAINED=",), "MODEL.PRETRAINED is empty"),
        (("TRAIN.DATASET=",), "TRAIN.DATASET is empty"),
        (("--widths", "0.2"), "was not trained"),
        (("--widths", "2"), "width 2.0 is not in"),
        (("--widths", "a:b"), "give widths such as"),
        (("--pretrained",), "--pretrained"),
        (("--limit-train", "1"), "CALIBRATION_PICTURES"),
    ],
)
def test_what_is_refused(
    us3l: Us3l, line: tuple[object, ...], tmp_path: Path, more: tuple[object, ...], said: str
) -> None:
    line = tuple(part for part in line if "--limit-train" not in more or part not in ("--limit-train", 40))
    line = line[:-1] if more[0] == "MODEL.PRETRAINED=" else line
    error = us3l(*line, *more, "--output", tmp_path / "out", code=2).stderr
    assert said in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


def test_pictures_in_files_are_cropped_as_in_the_authors_program(
    us3l: Us3l, line: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down to 0.08 of the area, where pretraining has 0.2; jitter, grey and blur are pretraining's."""
    seen = list[Recipe]()

    def trained(self: FixedPictures, recipe: Recipe) -> Iterator[Batch]:
        seen.append(recipe)
        return shuffled(self.pictures, recipe, self.options, seed=self.seed)

    monkeypatch.setattr(FixedPictures, "trained", trained)
    (tmp_path / "data/train").mkdir(parents=True)
    for number in range(40):
        Image.new("RGB", (12, 12), (6 * number, 99, 0)).save(tmp_path / f"data/train/{number}.png")
    us3l(*line, "--data", tmp_path / "data", "TRAIN.DATASET=folder", "--workers", 0, "--output", tmp_path / "out")
    assert seen == [Recipe(IMAGENET, RandomResizedCrop(8, (0.08, 1.0)), ssl_views(8, IMAGENET, blur=True).colour)]


def test_a_dry_run(us3l: Us3l, line: tuple[object, ...], tmp_path: Path) -> None:
    said = us3l(*line, "--widths", "0.25,0.5", "--dry-run", "--output", tmp_path / "out").stdout
    assert "widths: 0.25, 0.5" in said and "net: cifar_resnet8_1x1" in said and not list(tmp_path.iterdir())
