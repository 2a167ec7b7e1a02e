"""What `linear` trains: bits, optimizer, learning rates; batches of features in place of pictures."""

from typing import Any

import pytest
import torch
from torch import nn

from lowbit.models.create import create_model
from lowbit.options import OptimOptions
from lowbit.quant.bitwidths import activations, weight_quantizers
from lowbit.train.protocol import Clock
from ssql.config import read_config
from ssql.methods import classifier
from ssql.optim import optimizer, rates

BASE = "configs/base/linear_cifar.yaml"
SMALL = ("MODEL.ARCH=cifar_resnet8_1x1", "SEED=5")


def test_learning_rates_are_the_recorded_ones(recorded: Any) -> None:
    raw = recorded.json("configs")
    schedules = recorded.json("schedule")
    entries = [entry for name, entry in schedules.items() if name.startswith(("linear", "finetune"))]
    assert entries
    for entry in entries:
        theirs = {key: value for key, value in raw[entry["config"]].items() if key.startswith("TRAIN.LR_SCHEDULER.")}
        rate = rates(read_config("linear", BASE, [f"{key}={value}" for key, value in theirs.items()]), "linear")["main"]
        found = [rate(Clock(0, epoch, entry["epochs"], 3, 7, 0)) for epoch in range(entry["epochs"])]
        assert found == pytest.approx(entry["lr"], rel=1e-12)


def test_learning_rates_by_type() -> None:
    def at(epoch: int, *keys: str) -> float:
        return rates(read_config("linear", BASE, keys), "linear")["main"](Clock(0, epoch, 100, 0, 9, 0))

    assert [at(epoch) for epoch in (0, 59, 60, 80)] == pytest.approx([30, 30, 3, 0.3])
    cosine = "TRAIN.LR_SCHEDULER.TYPE=cosine"
    assert [at(epoch, cosine) for epoch in (0, 50, 100)] == pytest.approx([30, 15, 0])  # milestones are ignored
    assert at(99, "TRAIN.LR_SCHEDULER.DECAY_MILESTONES=[]") == 30


@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_lars_follows_its_formula(decay: float) -> None:
    """v = momentum v + trust |w| / (|g| + decay |w|) (g + decay w), w = w - lr v; never clipped, also without decay."""
    keys = ("TRAIN.OPTIMIZER.NAME=lars", "TRAIN.OPTIMIZER.MOMENTUM=0.9", f"TRAIN.OPTIMIZER.WEIGHT_DECAY={decay}")
    config = read_config("linear", BASE, (*keys, "TRAIN.LR_SCHEDULER.BASE_LR=2.4"))
    net = nn.Linear(5, 3).double()
    net.requires_grad_(True)
    found = optimizer(config, net, "linear")
    w, v = net.weight.detach().clone(), torch.zeros(3, 5).double()
    for step in range(3):
        g = torch.sin(torch.arange(15.0) + step).double().view(3, 5)
        net.weight.grad, net.bias.grad = g.clone(), torch.zeros(3).double()
        found.step()
        v = 0.9 * v + 0.001 * w.norm() / (g.norm() + decay * w.norm()) * (g + decay * w)
        w = w - 2.4 * v
        torch.testing.assert_close(net.weight.detach(), w, rtol=1e-6, atol=0)


def test_flags_replace_optimizer_and_schedule() -> None:
    config, net = read_config("linear", BASE, ("TRAIN.OPTIMIZER.NAME=lars",)), nn.Linear(3, 2)
    assert type(optimizer(config, net, "linear")).__name__ == "Lars"
    assert type(optimizer(config, net, "linear", OptimOptions(opt="sgd"))) is torch.optim.SGD
    rate = rates(config, "linear", OptimOptions(sched="cosine", warmup_epochs=2))["main"]
    found = [rate(Clock(0, epoch, 100, step, 4, 0)) for epoch, step in ((0, 0), (1, 3), (2, 0), (50, 0))]
    cosine = rates(config, "linear", OptimOptions(sched="cosine"))["main"]
    assert found == pytest.approx([30 / 8, *(cosine(Clock(0, epoch, 100, 0, 4, 0)) for epoch in (1, 2, 50))])


def test_groups_of_the_optimizer() -> None:
    keys = ("TRAIN.OPTIMIZER.WEIGHT_DECAY=0.1", "TRAIN.OPTIMIZER.DECAY_NORM_AND_BIAS=False")
    net = create_model("cifar_resnet8_1x1", num_classes=3)
    made = optimizer(read_config("linear", BASE, keys), net, "linear")
    decays = {p: group["weight_decay"] for group in made.param_groups for p in group["params"]}
    assert decays == {p: 0.1 if p.dim() > 1 else 0 for p in net.parameters()}
    net.requires_grad_(False)
    net.fc.requires_grad_(True)
    assert sum(len(g["params"]) for g in optimizer(read_config("linear", BASE), net, "linear").param_groups) == 2


def test_full_precision_means_full_precision() -> None:
    float_bits, authors = ("QUANT.W.BIT=0", "QUANT.A.BIT=0"), "QUANT.FP=authors"
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    net = classifier(read_config("linear", BASE, (*SMALL, *float_bits)), (3, 8, 8), 7).eval()
    torch.manual_seed(5)
    plain_net = create_model("cifar_resnet8_1x1", num_classes=7).eval()
    assert (
        torch.equal(net(x), plain_net(x))
        and not weight_quantizers(net)
        and list(net.state_dict()) == list(plain_net.state_dict())
    )
    theirs = classifier(read_config("linear", BASE, (*SMALL, *float_bits, authors)), (3, 8, 8), 7)
    assert {q.pin: int(q.w_bits) for q in weight_quantizers(theirs)} == {8: 8, None: 0}
    low = classifier(read_config("linear", BASE, (*SMALL, "QUANT.W.BIT=2", "QUANT.A.BIT=4")), (3, 8, 8), 7)
    assert {q.pin: (int(q.w_bits), q.mode) for q in weight_quantizers(low)} == {
        8: (8, "quantized"),
        None: (2, "quantized"),
    }
    assert {a.pin: int(a.a_bits) for a in activations(low).values()} == {8: 8, None: 4}
    assert type(low.get_classifier()) is nn.Linear  # stays float
