"""The command lines of the authors' README at two revisions, run one after the other on the digits."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

Bsq = Callable[..., Result]
SMALL = ("-d", "digits", "--limit-train", "160", "--limit-eval", "60")

# the README's lines at two revisions, `python X.py` -> `X`; `smaller` makes them small
RECIPES = {
    "first": (
        "cifar_prune_STE -a resnet --depth 20 --epochs 350 --lr 0.1 --schedule 250 --gamma 0.1 --wd 1e-4 --model "
        "checkpoints/cifar10/resnet-20-8/model_best.pth.tar --decay 0.01 --Prun_Int 50 --thre 0.0 --checkpoint "
        "checkpoints/cifar10/xxx --Nbits 8 --bin --L1",
        "cifar_finetune -a resnet --depth 20 --model checkpoints/cifar10/xxx/checkpoint.pth.tar --Nbits 8 --bin "
        "--evaluate",
        "cifar_finetune -a resnet --depth 20 --epochs 250 --lr 0.0001 --schedule 250 --gamma 0.1 --wd 1e-4 --model "
        "checkpoints/cifar10/xxx/checkpoint.pth.tar --checkpoint checkpoints/cifar10/xxx-ft --Nbits 8 --bin",
        "convert -a resnet --depth 20 --model checkpoints/cifar10/resnet-20/model_best.pth.tar --dict "
        "checkpoints/cifar10/xxx/checkpoint.pth.tar --checkpoint checkpoints/cifar10/xxx-mp --Nbits 8",
    ),
    "last": (
        "cifar_prune_STE -a resnet --depth 20 --epochs 350 --lr 0.1 --schedule 250 --gamma 0.1 --wd 1e-4 --model "
        "checkpoints/cifar10/resnet-20-8/model_best.pth.tar --decay 0.01 --Prun_Int 100 --thre 0.0 --checkpoint "
        "checkpoints/cifar10/xxx --Nbits 8 --act 4 --bin --L1",
        "cifar_finetune -a resnet --depth 20 --model checkpoints/cifar10/xxx/checkpoint.pth.tar --Nbits 8 --act 4 "
        "--bin --evaluate",
        "cifar_finetune -a resnet --depth 20 --epochs 300 --lr 0.01 --schedule 150 250 --gamma 0.1 --wd 1e-4 --model "
        "checkpoints/cifar10/xxx/checkpoint.pth.tar --checkpoint checkpoints/cifar10/xxx-ft --Nbits 8 --act 4 --bin",
        "convert -a resnet --depth 20 --model checkpoints/cifar10/resnet-20/model_best.pth.tar --dict "
        "checkpoints/cifar10/xxx/checkpoint.pth.tar --checkpoint checkpoints/cifar10/xxx-mp --Nbits 8 --act 4",
    ),
}
START = (
    "convert -a resnet --depth 20 --model checkpoints/cifar10/resnet-20/model_best.pth.tar "
    "--checkpoint checkpoints/cifar10/resnet-20-8 --Nbits 8"
)


def smaller(line: str) -> Iterator[str]:
    """The same flags for a net of depth 8 and one epoch of the digits."""
    words = line.split()
    for flag, word in zip(["", *words], words, strict=False):
        yield {"--depth": "8", "--epochs": "1"}.get(flag, word)
    yield from SMALL


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("revision", RECIPES)
def test_the_authors_lines_one_after_the_other(
    revision: str, digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "checkpoints/cifar10"
    base.mkdir(parents=True)
    (base / "resnet-20").symlink_to(digits_run / "float")
    prune, evaluate, finetune, convert = RECIPES[revision]
    bsq(*smaller(START))
    said = bsq(*smaller(prune)).stdout
    assert "########Model after pruning########" in said and "Final checkpoint:" in said and "Best acc:" in said
    top1, widths = result_of(base / "xxx")["top1"], result_of(base / "xxx")["bits"]
    assert bsq(*smaller(evaluate)).stdout.count(f"Accuracy: {top1:.2f}%") == 3
    bsq(*smaller(finetune))
    tuned = result_of(base / "xxx-ft")
    assert tuned["top1_start"] == top1 and tuned["bits"] == widths
    again = evaluate.replace("xxx/", "xxx-ft/")  # the authors could not evaluate this file
    assert bsq(*smaller(again)).stdout.count(f"Accuracy: {tuned['top1']:.2f}%") == 3
    bsq(*smaller(convert))
    converted = torch.load(base / "xxx-mp/checkpoint.pth.tar", weights_only=True)["Nbit_dict"]
    assert {name: pair[0] for name, pair in converted.items()} == {name: pair[0] for name, pair in widths.items()}
