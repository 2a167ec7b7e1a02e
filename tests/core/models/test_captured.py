"""Outputs of named modules: one per call while the context lasts, and a name that is not there."""

import pytest
import torch
from torch import nn

from lowbit.errors import InputError
from lowbit.models.captured import captured, run_captured


def test_outputs_are_kept_with_their_graph_while_the_context_lasts() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 2)))
    x, y = torch.randn(2, 5, 3)
    with captured(net, ["0", "1.1"]) as outputs:
        first, second = net(x), net(y)
    net(x)
    assert len(outputs["0"]) == 2 and torch.equal(outputs["0"][1], net[0](y)) and outputs["0"][0].requires_grad
    assert outputs["1.1"][0] is first and outputs["1.1"][1] is second


def test_outputs_for_each_input() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    x, y = torch.randn(2, 5, 3)
    outputs, inside = run_captured(net, ["0"], (x, y))
    assert [torch.equal(a, net(b)) for a, b in zip(outputs, (x, y), strict=True)] == [True, True]
    assert list(inside) == ["0"] and torch.equal(inside["0"][1], net[0](y)) and len(inside["0"]) == 2
    assert run_captured(net, [], (x,))[1] == {} and not net[0]._forward_hooks


def test_an_unknown_name_leaves_no_hook_behind() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    with pytest.raises(InputError, match=r"no module 'fc'.*such as 0, 1"), captured(net, ["0", "fc"]):
        pass
    assert not net[0]._forward_hooks
