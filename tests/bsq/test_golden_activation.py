"""Activation quantizers against the original's numbers: values, masks of the gradients, PACT's alpha."""

import re
from collections.abc import Callable
from typing import Any

import torch

from lowbit.quant.activations import ActivationConfig, QuantActivation, pact, quantize_activation_


def test_relu6(recorded: Any, near: Callable) -> None:
    arrays = recorded["roundtrip_act"]
    for prefix in recorded.cases("roundtrip_act", r"act\.relu6\.b\d+\."):
        x = arrays["act.x"].clone().requires_grad_()
        y = QuantActivation(ActivationConfig(int(prefix.split(".b")[1][:-1]), "relu6"))(x)
        near(y, arrays[f"{prefix}y"], prefix)
        (dx,) = torch.autograd.grad((y * arrays["act.g"]).sum(), x)
        assert torch.equal(dx, arrays[f"{prefix}dx"])


def test_pact(recorded: Any, near: Callable) -> None:
    arrays = recorded["roundtrip_act"]
    for prefix in recorded.cases("roundtrip_act", r"act\.pact\.b\d+\.alpha[\d.]+\.(?=y)"):
        bits, alpha = re.findall(r"b(\d+)\.alpha([\d.]+)\.$", prefix)[0]
        module = QuantActivation(ActivationConfig(int(bits), "pact"))
        assert module.alpha is not None and module.alpha.item() == 10
        module.alpha.data.fill_(float(alpha))
        x = arrays["act.x"].clone().requires_grad_()
        y = module(x)
        near(y, arrays[f"{prefix}y"], prefix)
        dx, dalpha = torch.autograd.grad((y * arrays["act.g"]).sum(), (x, module.alpha))
        assert torch.equal(dx, arrays[f"{prefix}dx"])
        near(dalpha, arrays[f"{prefix}dalpha"], prefix)


def test_pact_at_its_edges(recorded: Any) -> None:
    arrays = recorded["roundtrip_act"]
    x = arrays["act.pact.points.x"].clone().requires_grad_()
    alpha = arrays["act.pact.points.alpha"].float().requires_grad_()
    y = pact(x, alpha)
    dx, dalpha = torch.autograd.grad(y.sum(), (x, alpha))
    assert torch.equal(y, arrays["act.pact.points.y"])
    assert torch.equal(dx, arrays["act.pact.points.dx"])
    assert torch.equal(dalpha, arrays["act.pact.points.dalpha"])


def test_zeros_stay_zero(recorded: Any) -> None:
    zeros = recorded["roundtrip_act"]["act.zero.y"]
    assert torch.equal(quantize_activation_(torch.zeros_like(zeros), torch.zeros(()), 4), zeros)
