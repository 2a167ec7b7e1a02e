"""Training of a switchable net with labels against a step written by hand."""

import copy
from functools import partial

import pytest
import torch
from torch import nn
from torch.optim import SGD

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
