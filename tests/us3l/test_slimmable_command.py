"""`us3l slimmable`: a switchable net is trained with labels, and its accuracy is taken at each width."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from click.testing import Result

import lowbit


def test_the_command_evaluates_each_width(us3l: Callable[..., Result], tmp_path: Path) -> None:
    keys = ("MODEL.ARCH=s_cifar_resnet8_1x1", "MODEL.INPUTSHAPE=[8,8]", "MODEL.NUM_CLASSES=10", "TRAIN.DATASET=digits")
    rates = ("TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=32", "TRAIN.GLOBAL_BATCH=32", "TRAIN.LR_SCHEDULER.BASE_LR=0.1")
    limits = ("--limit-train", 200, "--limit-eval", 40, "-p", 5)
    line = ("slimmable", "--config", "configs/base/slimmable_cifar.yaml", *keys, *rates, *limits)
    planned = us3l(*line, "--output", tmp_path / "out", "--dry-run").stdout
    assert "widths: ['1', '0.75', '0.5', '0.25']" in planned and not list(tmp_path.iterdir())
    said = us3l(*line, "--output", tmp_path / "out").stdout.splitlines()
    assert [text.rpartition(" ")[2] for text in said if " at width " in text] == ["1", "0.75", "0.5", "0.25"]
    assert sum(text.startswith("Epoch: [0][5/7]\tLoss: ") and "Acc@1: " in text for text in said) == 1
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["top1"] == result["top1_1"] and {"top5_0.25", "loss_0.5"} <= result.keys()
    assert (tmp_path / "out/backbone.safetensors").is_file()
    net = lowbit.load(tmp_path / "out/checkpoint.pth.tar").eval()
    assert net(torch.zeros(2, 3, 8, 8)).shape == (2, 10)
