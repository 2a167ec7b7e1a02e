"""Training of a switchable net with labels against a step written by hand; its accuracies at each width."""

import copy
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import nn
from torch.optim import SGD

import lowbit
from lowbit.data.batch import Batch
from lowbit.models.create import create_model
from lowbit.slim.conversion import slim_
from lowbit.slim.layers import at_width
from lowbit.slim.training import SlimmableTraining
from lowbit.train.protocol import Clock

WIDTHS = (0.5, 1.0, 0.25)
CLOCK = Clock(0, 0, 1, 0, 1, 0)


def small_net() -> nn.Module:
    torch.manual_seed(1)
    return slim_(create_model("cifar_resnet8_1x1", num_classes=5), (3, 8, 8), WIDTHS).double()


def batch() -> Batch:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(6, 3, 8, 8, generator=generator, dtype=torch.float64)
    return Batch((x,), torch.arange(6), torch.tensor([0, 1, 2, 3, 4, 0]), 1.0)


@pytest.mark.parametrize("distills", [True, False])
def test_a_step_equals_one_written_by_hand(distills: bool) -> None:
    net, seen = small_net(), batch()
    by_hand, x, label = copy.deepcopy(net), seen.views[0], seen.label
    assert label is not None
    objective = SlimmableTraining(net, WIDTHS, partial(_sgd), distills=distills)
    mine, theirs = objective.optimizers()["main"], _sgd(by_hand)
    objective.train()
    carry, soft = None, None
    for pas, width in zip(objective.passes(CLOCK), sorted(WIDTHS, reverse=True), strict=True):
        out = objective(seen, CLOCK, pas, carry)
        carry = out.carry
        with at_width(by_hand, width):
            log = torch.log_softmax(by_hand(x), 1)
        soft = log.exp().detach() if soft is None else soft
        target = soft if distills and width < 1 else nn.functional.one_hot(label, 5).double()
        loss = -(target * log).sum(1).mean()
        assert out.loss.item() == pytest.approx(loss.item(), abs=1e-12)
        assert out.parts[f"loss_{width:g}"].item() == out.loss.item()
        assert out.parts[f"top1_{width:g}"].item() == pytest.approx(
            100 * (log.argmax(1) == label).double().mean().item()
        )
        for optimizer, value in ((mine, out.loss), (theirs, loss)):
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
    for a, b in zip(net.state_dict().values(), by_hand.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def _sgd(module: nn.Module) -> SGD:
    return SGD(module.parameters(), lr=0.1, momentum=0.9)


def test_one_optimizer_step_for_all_widths() -> None:
    net = small_net()
    objective = SlimmableTraining(net, WIDTHS, _sgd, step_per_batch=True)
    assert [(pas.variant, pas.step) for pas in objective.passes(CLOCK)] == [(1.0, ()), (0.5, ()), (0.25, ("main",))]
    with pytest.raises(ValueError, match="labels"):
        objective(batch()._replace(label=None), CLOCK, objective.passes(CLOCK)[0], None)


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
