"""`ssql draw`: a map of features, the same each time; what is refused."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from PIL import Image

from lowbit.models.create import create_model

Ssql = Callable[..., Result]


@pytest.fixture
def line(small: Path, digits_run: tuple[Path, Result]) -> tuple[object, ...]:
    pretrained = f"MODEL.PRETRAINED={digits_run[0] / 'checkpoint.pth.tar'}"
    return ("draw", "--config", small, "--limit-train", 60, pretrained)


def places(folder: Path) -> list[dict[str, str]]:
    with (folder / "features.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_map_of_features(ssql: Ssql, line: tuple[object, ...], tmp_path: Path) -> None:
    ssql(*line, "--output", tmp_path / "a", "QUANT.W.BIT=4", "QUANT.A.BIT=4")
    rows = places(tmp_path / "a")
    assert len(rows) == 60 and {row["class"] for row in rows} == set("0123456789")
    with Image.open(tmp_path / "a/features.png") as drawn:
        assert drawn.format == "PNG" and min(drawn.size) > 300
    names = {path.name for path in (tmp_path / "a").iterdir()} - {".lock"}
    assert names == {"config.json", "features.csv", "features.png", "result.json", "train.log"}
    ssql(*line, "--output", tmp_path / "b", "QUANT.W.BIT=2")
    assert places(tmp_path / "b") != rows
    assert "w_bits: 8" in ssql(*line, "--output", tmp_path / "c", "--dry-run").stdout
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("MODEL.PRETRAINED=",), "MODEL.PRETRAINED is empty"),
        (("MODEL.PRETRAINED=nowhere.pth.tar",), "nowhere.pth.tar"),
        (("MODEL.ARCH=resnet18",), "not a resnet18"),
        (("--limit-train", 4), "5 or more"),
        (("TRAIN.DATASET=''",), "TRAIN.DATASET is empty"),
        (("MODEL.CHECKPOINT=auto",), "MODEL.CHECKPOINT has no meaning in draw"),
        (("MODEL.PRETRAINED=HUGE", "QUANT.W.BIT=0", "QUANT.A.BIT=0"), "hold NaN or infinity"),
        (("MODEL.PRETRAINED=VIT", "MODEL.ARCH=test_vit"), "test_vit cannot take pictures of 8x8 pixels"),
    ],
)
def test_what_is_wrong_is_one_line(
    ssql: Ssql, line: tuple[object, ...], tmp_path: Path, args: tuple[object, ...], said: str
) -> None:
    keys = [text.partition("=")[0] for text in map(str, args)]
    kept = [part for part in line if str(part).partition("=")[0] not in keys]
    if "--limit-train" in keys:
        kept.remove(60)
    torch.save(create_model("test_vit", num_classes=0).state_dict(), tmp_path / "vit")
    state = create_model("cifar_resnet8_1x1", num_classes=0).state_dict()
    torch.save(state | {"bn1.bias": state["bn1.bias"] + 3e38}, tmp_path / "huge")
    names = {"=VIT": f"={tmp_path / 'vit'}", "=HUGE": f"={tmp_path / 'huge'}"}
    given = [str(arg).replace(old, new) for arg in args for old, new in names.items() if old in str(arg)]
    given += [str(arg) for arg in args if not str(arg).endswith(tuple(names))]
    result = ssql(*kept, *given, "--output", tmp_path / "out", code=2)
    assert said in result.stderr and not (tmp_path / "out").exists()
