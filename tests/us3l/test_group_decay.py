"""Group regularization: recorded lambdas, values and gradients, and the term whose gradient it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowbit.train.protocol import Clock
from us3l.group_decay import GroupDecay


def add_(decay: GroupDecay, epoch: int, epochs: int, width: float = 0.5, **parameters: nn.Parameter) -> None:
    """To the gradients of a module with these parameters."""
    module = nn.Module()
    for name, p in parameters.items():
        module.register_parameter(name, p)
    decay.add_(module, width, Clock(0, epoch, epochs, 0, 1, seed=0))


def slow_value(p: Tensor, lambdas: tuple[float, ...], base: float) -> Tensor:
    """R of one parameter, group by group."""
    if p.dim() not in (1, 4):
        return base * (p * p).sum()
    k, size = len(lambdas), len(p) // len(lambdas)
    blocks = [p[i * size : (i + 1) * size if i < k - 1 else len(p)] for i in range(k)]
    return sum((value * (block * block).sum() for value, block in zip(lambdas, blocks, strict=True)), p.new_zeros(()))


def test_recorded_lambdas_values_and_gradients(golden: Callable[[str], Path]) -> None:
    facts = json.loads((golden("us3l") / "group_reg.json").read_text())["per_block"]
    arrays: dict[str, Any] = dict(np.load(golden("us3l") / "group_reg.npz"))
    assert len(facts) > 20
    for row in facts:
        decay = GroupDecay(row["base"], row["alpha"], row["type"], row["bins"], row["warmup"])
        lambdas = decay.lambdas(row["epoch"], row["epochs"])
        assert lambdas == pytest.approx(row["lambdas"], rel=1e-12), row["tag"]
        for name in [key.removeprefix("p/") for key in arrays if key.startswith("p/")]:
            p = nn.Parameter(torch.tensor(arrays[f"p/{name}"]).double())
            where = f"{row['tag']}/{name}"
            value = slow_value(p, lambdas, row["base"])
            assert value.item() == pytest.approx(arrays[f"{where}/value"].item(), rel=1e-6), where
            add_(decay, row["epoch"], row["epochs"], **{name: p})
            assert p.grad is not None
            assert torch.allclose(p.grad, torch.tensor(arrays[f"{where}/grad"]).double(), rtol=1e-6, atol=1e-12)
            (slow,) = torch.autograd.grad(value, p)
            assert torch.allclose(p.grad, slow, rtol=1e-12, atol=0), where


def test_it_is_added_to_what_is_there_and_follows_the_epoch() -> None:
    p, decay = nn.Parameter(torch.ones(8)), GroupDecay(0.5, 0.1, "linear", 4)
    p.grad = torch.full((8,), 2.0)
    add_(decay, 10, 10, p=p)
    assert torch.allclose(p.grad, 2 + torch.tensor([1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7]))
    p.grad = None
    add_(decay, 0, 10, p=p)
    assert torch.equal(p.grad, torch.ones(8))


def test_which_parameters(golden: Callable[[str], Path]) -> None:
    """At full width without the heads, never the momentum copy; a recorded value and list of names for each width."""
    recorded = json.loads((golden("us3l") / "group_reg.json").read_text())["names_regularised"]
    assert "1.0" in recorded and len(recorded) > 1
    for width, row in recorded.items():
        names = ("encoder_q", "encoder_k", "predictor", "predictor_new", "proj_conv", "other")
        module = nn.ModuleDict({name: nn.Linear(2, 2) for name in names})
        module["other"].requires_grad_(False)
        GroupDecay(0.5).add_(module, float(width), Clock(0, 0, 10, 0, 1, seed=0))
        found = {name.partition(".")[0] for name, p in module.named_parameters() if p.grad is not None}
        assert found == {name.removesuffix("_w") for name in row["gets_gradient"]} - {"other"}
        assert {"predictor", "predictor_new"} <= found or float(width) == 1


def test_a_negative_lambda_is_computed_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    lambdas = GroupDecay(0.5, 0.2, "linear", 8).lambdas(10, 10)
    assert lambdas == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0, -0.1, -0.2])
    assert [record.message for record in caplog.records] == [
        "group regularization: with alpha=0.2 the last of 8 groups has a negative lambda: its channels grow"
    ]
    caplog.clear()
    p = nn.Parameter(torch.ones(8))
    add_(GroupDecay(0.5, 0.2, "linear", 8), 10, 10, p=p)
    assert torch.allclose(p.grad, 2 * torch.tensor(lambdas))
    GroupDecay(0.5, 0.2, "linear", 6), GroupDecay(0.5, 0.2, "exp", 8)
    assert len(caplog.records) == 1


def test_the_inputs_of_matrices_where_these_are_slimmed() -> None:
    """Of vision transformers: groups of columns, all else has lambda."""
    decay = GroupDecay(0.5, 0.1, "linear", 4, of_inputs=True)
    shapes = {"matrix": (3, 9), "bias": (8,), "patches": (8, 3, 2, 2)}
    parameters = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    add_(decay, 10, 10, **parameters)
    columns = torch.tensor([1.0, 1.0, 0.9, 0.9, 0.8, 0.8, 0.7, 0.7, 0.7])
    torch.testing.assert_close(parameters["matrix"].grad, columns.expand(3, 9))
    assert all(torch.equal(parameters[name].grad, torch.ones(shapes[name])) for name in ("bias", "patches"))
