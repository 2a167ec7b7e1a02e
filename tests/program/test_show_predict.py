"""`lowbit show` and `lowbit predict` of a checkpoint and of an export of each method, and what they refuse."""

import csv
import json
import math
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import Result
from PIL import Image
from torch import nn

import lowbit
from lowbit.errors import InputError
from lowbit.export.program import save_program
from lowbit.models.create import create_model
from lowbit.models.pretrained_cfg import checked_cfg
from lowbit.quant.calibrate import unfixed

Run = Callable[..., Result]
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# file, method, bits of the layers' weights (the sign is counted; 32: float) and of their inputs
CLASSIFIERS = [
    ("bsq.pth.tar", "bsq", {4: 8, 32: 2}, {4: 7, 32: 3}),
    ("bsq/packed.safetensors", "bsq", {4: 8, 32: 2}, {4: 7, 32: 3}),
    ("ssql.pth.tar", "ssql", {4: 8, 8: 1, 32: 1}, {4: 7, 8: 1, 32: 2}),
    ("us3l.pth.tar", "us3l", {32: 10}, {32: 10}),
    ("us3l-plain/subnetwork.safetensors", None, {32: 10}, {32: 10}),
    ("us3l-packed/packed.safetensors", "us3l", {32: 10}, {32: 10}),
    ("s2bnn.pth.tar", "s2bnn", {1: 8, 32: 2}, {1: 8, 32: 2}),
    ("s2bnn-packed/packed.safetensors", "s2bnn", {1: 8, 32: 2}, {1: 8, 32: 2}),
    ("s2bnn-float/network.safetensors", None, {1: 8, 32: 2}, {1: 8, 32: 2}),
    ("sqakd.pth", "sqakd", {2: 8, 32: 2}, {2: 8, 32: 2}),
    ("sqakd/packed.safetensors", "sqakd", {2: 8, 32: 2}, {2: 8, 32: 2}),
]
BACKBONES = ["ssql-encoder.pth.tar", "ssql-backbone.safetensors", "s2bnn-backbone/backbone.safetensors"]


@pytest.mark.parametrize(("name", "method", "weights", "inputs"), CLASSIFIERS, ids=[row[0] for row in CLASSIFIERS])
def test_show(files: Path, name: str, method: str | None, weights: Any, inputs: Any) -> None:
    found = lowbit.show(files / name)
    assert (found.method, found.net, found.classes) == (method, "cifar_resnet8_1x1", NAMES)
    assert found.pictures["input_size"] == [3, 8, 8] and found.pictures_stated
    assert found.bits == {"weights": weights, "inputs": inputs}
    total = 78_042 if "us3l" not in name else 19_954
    assert total <= found.totals["parameters"] <= total + 7  # slopes of a binary net
    said = str(found)
    assert str(files / name) in said and "10: zero, one" in said and "| conv1 |" in said
    macs = {row.name: row.macs for row in found.layers}
    assert macs["conv1"] == (27_648 if total == 78_042 else 13_824)


def test_the_command_says_what_the_function_finds(files: Path, program: Run) -> None:
    for name in ("bsq/packed.safetensors", "ssql.pth.tar", "us3l-plain/subnetwork.pt2"):
        found = lowbit.show(files / name)
        assert program("lowbit", "show", files / name).stdout == f"{found}\n"
        plain = json.loads(program("lowbit", "show", files / name, "--json").stdout)
        assert plain["classes"] == list(NAMES) and plain["totals"]["bytes"] == found.totals["bytes"]
        assert [row["macs"] for row in plain["layers"]] == [row.macs for row in found.layers]


@pytest.mark.parametrize("name", [row[0] for row in CLASSIFIERS])
@torch.no_grad()
def test_predict(files: Path, digits: Path, name: str) -> None:
    """What timm's own transform and the net of `lowbit.load` say."""
    net, paths = lowbit.load(files / name), sorted(digits.iterdir())
    show = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    x = torch.stack([show(Image.open(path).convert("RGB")) for path in paths])
    logits = torch.cat([net(one[None]) for one in x]) if unfixed(net) else net(x)
    found = lowbit.predict(files / name, digits, top=3)
    assert len(found.rows) == 6 and found.unreadable == () and str(paths[0]) in str(found.rows[0])
    for row, path, one in zip(found.rows, paths, logits.softmax(1), strict=True):
        shares, order = one.topk(3)
        assert row.picture == path and row.classes == tuple(NAMES[number] for number in order)
        assert row.probabilities == pytest.approx(shares.tolist(), abs=1e-5)


def test_an_export_is_as_small_as_it_says(files: Path) -> None:
    for name in ("bsq", "sqakd", "s2bnn-packed"):
        found = lowbit.show(files / name / "packed.safetensors")
        assert found.totals["bytes"] < found.bytes < found.totals["bytes"] + 2500  # how the net is built again


def test_figures(files: Path) -> None:
    """Of the file itself, else of the result beside it."""
    found = lowbit.show(files / "bsq.pth.tar")
    assert found.figures == {"top1": 12.5, "loss": 2.25} and found.facts["epoch"] == 3
    exported = lowbit.show(files / "bsq/packed.safetensors")
    assert exported.figures["top1"] == json.loads((files / "bsq/result.json").read_text())["top1"]
    assert lowbit.show(files / "s2bnn-float/network.safetensors").figures == {}


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_has_no_classes(files: Path, digits: Path, program: Run, tmp_path: Path, name: str) -> None:
    found = lowbit.show(files / name)
    assert found.classes == () and "linear probe" in str(found)
    assert 77_392 <= found.totals["parameters"] <= 77_399  # without a projector
    error = program("lowbit", "predict", files / name, digits, "--output", tmp_path / "x.csv", code=2).stderr
    assert error.count("\n") == 1 and "no classifier" in error and "linear probe" in error and not [*tmp_path.iterdir()]


def test_a_program_is_described_and_never_run(files: Path, digits: Path, program: Run, tmp_path: Path) -> None:
    path = files / "us3l-plain/subnetwork.pt2"
    found = lowbit.show(path)
    assert (found.kind, found.net, found.classes, found.layers) == ("program", "cifar_resnet8_1x1", NAMES, ())
    assert found.facts["width"] == 0.5 and "torch.export.load" in str(found)
    error = program("lowbit", "predict", path, digits, code=2).stderr
    assert error.count("\n") == 1 and "never run" in error
    save_program(nn.Flatten(), tmp_path / "bad.pt2", (3, 8, 8), {"num_classes": 10**18, "pretrained_cfg": {}})
    program("lowbit", "show", tmp_path / "bad.pt2", code=2)
    torch.export.save(torch.export.export(nn.Flatten(), (torch.zeros(1, 2),)), tmp_path / "other.pt2")
    assert "nothing here wrote" in program("lowbit", "show", tmp_path / "other.pt2", code=2).stderr


def test_csv(files: Path, digits: Path, program: Run, tmp_path: Path) -> None:
    out = tmp_path / "found.csv"
    line = ("predict", files / "sqakd.pth", digits / "digit-1.png", digits, "--top", 99, "--output", out)
    said = program("lowbit", *line).stdout.splitlines()
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert all(row["picture"] in one and row["class_1"] in one for row, one in zip(rows, said, strict=True))
    assert [Path(row["picture"]).name for row in rows] == ["digit-1.png", *(f"digit-{n}.png" for n in range(6))]
    shares = [[float(row[f"probability_{n}"]) for n in range(1, 11)] for row in rows]
    assert all(share == sorted(share, reverse=True) and math.isclose(sum(share), 1, abs_tol=1e-4) for share in shares)
    assert {row[f"class_{n}"] for row in rows[:1] for n in range(1, 11)} == set(NAMES)
    before = out.read_bytes()
    assert "--overwrite" in program("lowbit", *line, code=2).stderr and out.read_bytes() == before
    program("lowbit", *line[:5], 1, *line[6:], "--overwrite")
    assert out.read_text().startswith("picture,class_1,probability_1\n")


def test_pictures_that_cannot_be_read_are_named(files: Path, digits: Path, program: Run, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    shutil.copy(digits / "digit-0.png", tmp_path)
    said = program("lowbit", "predict", files / "sqakd.pth", tmp_path)
    assert said.stdout.count("\n") == 1 and "no.png" in said.stderr
    found = lowbit.predict(files / "sqakd.pth", [tmp_path])
    assert found.unreadable == (tmp_path / "no.png",) and len(found.rows) == 1


@pytest.mark.parametrize(
    ("pictures", "more", "says"),
    [
        (("nowhere.png",), (), "there is no nowhere.png"),
        (("empty",), (), "no picture was found"),
        (("no.png",), (), "none of the 1 pictures can be read"),
        (("digit-0.png",), ("--top", 0), "0 is not in the range"),
        (("digit-0.png",), ("--output", "empty"), "name a file in a folder"),
        (("digit-0.png",), ("--output", "none/x.csv"), "name a file in a folder"),
        (("digit-0.png",), ("--output", "/dev/null", "--overwrite"), "name a file in a folder"),
        (("digit-0.png",), ("--output", "digit-0.png", "--overwrite"), "one of the files that are read"),
    ],
)
def test_refused(
    files: Path, digits: Path, program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: tuple[str, ...],
    more: tuple[object, ...], says: str,
) -> None:  # fmt: skip
    shutil.copytree(digits, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    Path("empty").mkdir()
    Path("no.png").write_bytes(b"no")
    before = sorted(Path().rglob("*"))
    errors = program("lowbit", "predict", files / "sqakd.pth", *pictures, *more, code=2).stderr.splitlines()
    assert says in errors[-1] and sorted(Path().rglob("*")) == before
    with pytest.raises(InputError, match="no picture is named"):
        lowbit.predict(files / "sqakd.pth", [])


@pytest.mark.parametrize("command", ["show", "predict"])
def test_a_file_of_a_method_that_is_not_installed(
    files: Path, digits: Path, program: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setattr("lowbit.loading.entry_points", lambda group: ())
    error = program("lowbit", command, files / "sqakd.pth", *([digits] if command == "predict" else []), code=2).stderr
    assert error.count("\n") == 1 and "lowbit-sqakd" in error
    lowbit.show(files / "sqakd/packed.safetensors")  # a packed file needs no method
    (tmp_path / "x").write_bytes(b"nothing")
    assert program("lowbit", command, tmp_path / "x", digits, code=2).stderr.count("\n") == 1


def test_several_widths_have_no_answer_for_one_picture(files: Path, digits: Path, program: Run, tmp_path: Path) -> None:
    saved = torch.load(files / "us3l.pth.tar", weights_only=True)
    torch.save({**saved, "widths": [0.5, 1.0], "width": None}, tmp_path / "c.pth.tar")
    error = program("lowbit", "predict", tmp_path / "c.pth.tar", digits, code=2).stderr
    assert error.count("\n") == 1 and "batch-norm statistics" in error and "export" in error
    assert lowbit.show(tmp_path / "c.pth.tar").classes == NAMES


def test_names_cannot_steer_a_terminal(files: Path, digits: Path, program: Run, tmp_path: Path) -> None:
    saved = torch.load(files / "sqakd.pth", weights_only=True)
    saved["pretrained_cfg"]["label_names"] = ["\x1b[2J\n"] * 10
    torch.save(saved, tmp_path / "c.pth")
    for line in (("show", tmp_path / "c.pth"), ("predict", tmp_path / "c.pth", digits)):
        said = program("lowbit", *line).stdout
        assert "\x1b" not in said and "?[2J?" in said


def test_what_a_file_leaves_out(tmp_path: Path, digits: Path, program: Run, caplog: pytest.LogCaptureFixture) -> None:
    """The authors' files state neither classes nor preparation."""
    state = {f"module.{key}": value for key, value in create_model("cifar_resnet20_1x1").state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "c.pth.tar")
    found = lowbit.show(tmp_path / "c.pth.tar")
    assert not found.pictures_stated and found.classes == tuple("0123456789") and "as timm has" in str(found)
    lowbit.predict(tmp_path / "c.pth.tar", digits)
    assert "does not say how pictures are shown" in caplog.text
    assert checked_cfg({**found.pictures, "crop_mode": "center"})["input_size"] == [3, 32, 32]


def test_a_damaged_archive_is_no_program(program: Run, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt2", "w") as archive:
        archive.writestr("x/archive_format", "pt2")
        archive.writestr("x/extra/lowbit.json", "{")
    assert "damaged" in program("lowbit", "show", tmp_path / "x.pt2", code=2).stderr
