"""The shipped configs for one's own pictures run on a folder of two classes, whose names the classifier knows."""

import importlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lowbit.loading import load

FIRST = {"ssql": "resnet18_ssql_simsiam", "us3l": "us_resnet18_us3l"}
NET = {"ssql": "MODEL.ARCH=cifar_resnet8_1x1", "us3l": "MODEL.ARCH=us_cifar_resnet8_1x1"}
SHORT = ("TRAIN.BATCH_SIZE=4", "TRAIN.GLOBAL_BATCH=4")
EPOCHS = {"ssql": "TRAIN.EPOCHS=1", "us3l": "TRAIN.EPOCHS=4"}  # of pretraining: fewer do not reach all widths
NAMED = {"ssql": ("QUANT.W.BIT=4", "QUANT.A.BIT=4"), "us3l": ("MODEL.OFA.CALIBRATION_PICTURES=8",)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 pictures to train with and 4 to evaluate on, of zeros and ones, as files of 80 x 70 pixels."""
    root, digits = tmp_path_factory.mktemp("pictures"), load_digits()
    for label, name in enumerate(("nought", "one")):
        for number, at in enumerate((digits.target == label).nonzero()[0][:6]):
            picture = Image.fromarray((digits.images[at] * 15).astype("uint8")).resize((80, 70))
            place = root / ("train" if number < 4 else "val") / name
            place.mkdir(parents=True, exist_ok=True)
            picture.save(place / f"{number}.png")
    return root


@pytest.mark.heavy
@pytest.mark.parametrize("side", [64, 224])
@pytest.mark.parametrize("method", FIRST)
def test_pretraining_probe_and_fine_tuning(
    method: str, side: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a smaller net than the configs name."""
    monkeypatch.chdir(tmp_path)
    package, options = importlib.import_module(method), {"data": folder, "workers": 0}
    own = NAMED[method] if method == "us3l" else ()
    name = f"configs/folder/{FIRST[method]}_{side}.yaml"
    first = package.pretrain(name, *SHORT, EPOCHS[method], NET[method], *own, **options, probe_every=0, output="ssl")
    for kind in ("linear_eval", "finetune"):
        keys = (*SHORT, "TRAIN.EPOCHS=1", NET[method], *NAMED[method], f"MODEL.PRETRAINED={first.checkpoint}")
        found = package.linear(f"configs/folder/resnet18_{kind}_{side}.yaml", *keys, **options, output=kind)
        assert found.figures["finished"] and 0 <= found.figures["top1"] <= 100
        classifier = load(found.checkpoint)
        assert classifier.pretrained_cfg["label_names"] == ("nought", "one")  # type: ignore[index]
        assert classifier.pretrained_cfg["input_size"] == (3, side, side)  # type: ignore[index]
        assert classifier(torch.zeros(1, 3, side, side)).shape == (1, 2)
