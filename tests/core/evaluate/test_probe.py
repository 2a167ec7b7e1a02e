"""The linear probe: its optimum, its two ways, LARS, the schedule, what it leaves alone, the digits."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from sklearn.linear_model import LogisticRegression
from torch import nn

from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.recipe import CIFAR10, cifar_train, plain
from lowbit.errors import InputError, Stopped
from lowbit.evaluate.cached import FromFeatures
from lowbit.evaluate.classify import classify
from lowbit.evaluate.features import Features, extract
from lowbit.evaluate.linear import linear_probe
from lowbit.evaluate.probe import ProbeOptions, make_head, score_head, train_head_
from lowbit.models.create import create_model
from lowbit.train import signals
from lowbit.train.loop import Run, fit
from lowbit.train.protocol import Clock, Stage

DOUBLE = torch.float64


def head_optimizer(options: ProbeOptions, student: nn.Module) -> torch.optim.Optimizer:
    return options.optimizer_of(student.net.get_classifier())  # type: ignore[operator, union-attr]


def digits(split: Any, n: int) -> Any:
    return load_dataset("digits", Path(), split).subset(torch.arange(n))


def test_ends_at_the_optimum_of_regularised_logistic_regression(
    accelerator: Accelerator, clouds: tuple[Features, Features]
) -> None:
    train, test = clouds
    assert train.label is not None and test.label is not None
    decay = 0.02
    head = make_head(6, 4, 0, dtype=DOUBLE)
    options = ProbeOptions(lr=0.5, weight_decay=decay, batch_size=120, epochs=700, milestones=(600,))
    train_head_(head, train, options, accelerator)
    with_one = np.concatenate([train.x.numpy(), np.ones((120, 1))], axis=1)  # the bias is decayed as well
    other = LogisticRegression(C=1 / (120 * decay), fit_intercept=False, tol=1e-10, max_iter=1000)
    expected = torch.from_numpy(other.fit(with_one, train.label.numpy()).coef_)
    found = torch.cat([head.weight, head.bias[:, None]], 1).detach()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    predicted = other.predict(np.concatenate([test.x.numpy(), np.ones((61, 1))], axis=1))
    top1 = 100 * (predicted == test.label.numpy()).mean()
    assert score_head(head, test)["probe_top1"] == pytest.approx(top1)


def test_separates_what_can_be_separated(accelerator: Accelerator) -> None:
    label = torch.arange(300) % 3
    x = torch.eye(3)[label] + 0.3 * torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    head = make_head(3, 3, 0)
    train_head_(head, Features(x, label), ProbeOptions(epochs=20), accelerator)
    assert score_head(head, Features(x, label))["probe_top1"] == 100


@pytest.mark.parametrize("schedule", ["multistep", "cosine"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_cached_features_and_the_loop_give_the_same_head(
    accelerator: Accelerator, schedule: Any, optimizer: Any
) -> None:
    """Without augmentation; ragged last batch, several epochs, a change of the rate."""
    torch.manual_seed(0)
    net: Any = create_model("cifar_resnet8_1x1", num_classes=10).double()
    net.fc = make_head(64, 10, 1, dtype=DOUBLE)
    lr = 0.5 if optimizer == "sgd" else 20.0
    options = ProbeOptions(
        lr=lr, batch_size=32, epochs=3, milestones=(1,), schedule=schedule, optimizer=optimizer, weight_decay=1e-3
    )
    pictures = digits("train", 100)
    loader = Loader(pictures, plain(CIFAR10), global_batch=32, seed=5, dtype=DOUBLE)
    objective = linear_probe(net, partial(head_optimizer, options))
    fit([Stage(objective, 3, {"main": options.rate()})], loader, Run(accelerator=accelerator, seed=5))

    cached = make_head(64, 10, 1, dtype=DOUBLE)
    start = cached.weight.detach().clone()
    features = extract(net, EvalLoader(pictures, plain(CIFAR10), batch_size=32, dtype=DOUBLE), accelerator)
    train_head_(cached, features, options, accelerator, seed=5)
    torch.testing.assert_close(net.fc.weight, cached.weight, rtol=0, atol=1e-11)
    torch.testing.assert_close(net.fc.bias, cached.bias, rtol=0, atol=1e-11)
    assert (cached.weight - start).abs().max() > 1e-3


def test_the_loop_leaves_the_backbone_as_it_is(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    net: Any = create_model("cifar_resnet8_1x1", num_classes=10)
    net.fc = make_head(64, 10, 0)
    before = copy.deepcopy(net.state_dict())
    options = ProbeOptions(lr=1.0, epochs=1)
    objective = linear_probe(net, partial(head_optimizer, options))
    loader = Loader(digits("train", 96), cifar_train(CIFAR10, 8, 1), global_batch=32, seed=0)
    fit([Stage(objective, 1, {"main": options.rate()})], loader, Run(accelerator=accelerator))
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"fc.weight", "fc.bias"}
    objective.train()
    assert not any(module.training for module in net.modules()) and objective.student.training
    optimized = [p for group in objective.optimizers()["main"].param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in net.fc.parameters()}
    assert isinstance(objective.get_submodule(*objective.compiled), FromFeatures)


@pytest.mark.parametrize("decay", [0.0, 0.01])
def test_lars_adapts_also_without_weight_decay(
    accelerator: Accelerator, clouds: tuple[Features, Features], decay: float
) -> None:
    """One step from w: 0.001 |w| / (|g| + decay |w|) (g + decay w); from a zero bias: its gradient."""
    x, label = clouds[0]
    assert label is not None
    head = make_head(6, 4, 3, dtype=DOUBLE)
    w = head.weight.detach().clone()
    p = torch.softmax(x @ w.T, 1) - torch.eye(4, dtype=DOUBLE)[label]
    g = p.T @ x / len(x)
    step = 0.001 * w.norm() / (g.norm() + decay * w.norm()) * (g + decay * w)
    options = ProbeOptions(lr=2.4, weight_decay=decay, batch_size=120, epochs=1, optimizer="lars")
    train_head_(head, clouds[0], options, accelerator)
    torch.testing.assert_close(head.weight.detach(), w - 2.4 * step, rtol=0, atol=1e-9)
    torch.testing.assert_close(head.bias.detach(), -2.4 * p.mean(0), rtol=0, atol=1e-12)


def test_rates_are_those_of_the_protocols() -> None:
    clock = Clock(0, 0, 100, 3, 10, 0)

    def rates(options: ProbeOptions, *epochs: int) -> list[float]:
        return [options.rate()(clock._replace(epoch=epoch)) for epoch in epochs]

    assert rates(ProbeOptions(), 0, 59, 60, 79, 80, 99) == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    assert rates(ProbeOptions(schedule="cosine", lr=0.8), 0, 50) == pytest.approx([0.8, 0.4])


def test_a_head_starts_as_mocos_by_seed_alone() -> None:
    head = make_head(512, 100, 4)
    assert head.weight.std().item() == pytest.approx(0.01, rel=0.02) and not head.bias.any()
    torch.manual_seed(9)
    assert torch.equal(make_head(512, 100, 4).weight, head.weight)
    assert torch.equal(make_head(512, 100, 4, dtype=DOUBLE).weight.float(), head.weight)
    assert not torch.equal(make_head(512, 100, 5).weight, head.weight)


def test_training_is_a_function_of_the_seed(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    def trained(seed: int) -> torch.Tensor:
        torch.randn(3)  # the global generator has no part in it
        head = make_head(6, 4, 0, dtype=DOUBLE)
        train_head_(head, clouds[0], ProbeOptions(lr=0.1, batch_size=7, epochs=2), accelerator, seed)
        return head.weight.detach()

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))


def test_scores_equal_those_of_the_whole_net(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    net: Any = create_model("cifar_resnet8_1x1", num_classes=10)
    net.fc = head = make_head(64, 10, 0)
    loader = EvalLoader(digits("test", 90), plain(CIFAR10), batch_size=40)
    whole = classify(FromFeatures(net), loader, accelerator)
    found = score_head(head, extract(net, loader, accelerator))
    expected = [whole.top1, whole.top5, whole.loss]
    assert [found[f"probe_{name}"] for name in ("top1", "top5", "loss")] == pytest.approx(expected, rel=1e-6)


def test_a_narrower_net_meets_the_first_columns(clouds: tuple[Features, Features]) -> None:
    test = clouds[1]
    head = make_head(6, 4, 0, dtype=DOUBLE)
    short = nn.Linear(2, 4, dtype=DOUBLE)
    short.load_state_dict({"weight": head.weight[:, :2], "bias": head.bias})
    narrow = test._replace(x=test.x[:, :2])
    assert score_head(head, narrow) == score_head(short, narrow)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0), ("lr", float("nan")), ("momentum", 1.0), ("weight_decay", -1e-4), ("batch_size", 0), ("epochs", 0),
        ("schedule", "step"), ("milestones", (80, 60)), ("gamma", 0.0), ("optimizer", "adam"),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        ProbeOptions(**{name: value})


def test_labels_and_a_rate_that_does_not_diverge(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    head, train = make_head(6, 4, 0, dtype=DOUBLE), clouds[0]
    for call in (lambda f: train_head_(head, f, ProbeOptions(), accelerator), lambda f: score_head(head, f)):
        with pytest.raises(InputError, match="labelled"):
            call(train._replace(label=None))
    with pytest.raises(InputError, match="finite"):
        train_head_(head, train._replace(x=train.x / 0), ProbeOptions(), accelerator)
    wild = ProbeOptions(lr=1e300, weight_decay=1e9, epochs=2)
    with pytest.raises(InputError, match="diverged"):
        train_head_(head, train, wild, accelerator)


def test_a_stop_is_seen(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    signals.request_stop()
    try:
        with pytest.raises(Stopped):
            train_head_(make_head(6, 4, 0, dtype=DOUBLE), clouds[0], ProbeOptions(), accelerator)
    finally:
        signals.clear()


def test_digits_through_random_weights(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=0)

    def features(split: Any) -> Features:
        return extract(
            net, EvalLoader(load_dataset("digits", Path(), split), plain(CIFAR10), batch_size=200), accelerator
        )

    head = make_head(64, 10, 0)
    train_head_(head, features("train"), ProbeOptions(lr=1.0, epochs=30, schedule="cosine"), accelerator)
    assert 75 < score_head(head, features("test"))["probe_top1"] < 99
