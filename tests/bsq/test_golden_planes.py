"""One layer against the original's numbers: float to planes, forward, gradients, regulariser."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bsq import planes
from bsq.layers import BitConv2d, BitLinear

KERNELS = 8e-7  # of an array's maximum: what other convolution kernels and two threads were seen to move (float32)


def conv_layer(recorded: Any, prefix: str, w: Tensor, bits: int) -> BitConv2d:
    stride, padding, groups = recorded["ops"]["bits.stride_padding_groups"].tolist()
    out, per_group, height, width = w.shape
    conv = nn.Conv2d(per_group * groups, out, (height, width), stride, padding, groups=groups, bias=False)
    conv.weight.data = w.clone()
    return BitConv2d(conv, bits)


def set_tensor(layer: nn.Module, name: str, value: Tensor) -> None:
    getattr(layer, name).data = value.to(getattr(layer, name).dtype).clone()


def check_backward(layer: Any, ops: dict[str, Tensor], prefix: str, x: Tensor, dy: Tensor, near: Callable) -> None:
    x = x.clone().requires_grad_()
    y = layer(x)
    near(y, ops[f"{prefix}y"], "y", KERNELS)
    near(layer.effective(), ops[f"{prefix}wq"], "wq")
    grads = torch.autograd.grad((layer(x) * dy).sum(), [x, *layer.parameters()])
    near(grads[0], ops[f"{prefix}dx"], "dx", KERNELS)
    for (name, parameter), grad in zip(layer.named_parameters(), grads[1:], strict=True):
        assert grad.shape == parameter.shape
        near(grad, ops[f"{prefix}d_{name}"], name, KERNELS)


@pytest.mark.parametrize("kind", ["bits", "real"])
def test_convolution(recorded: Any, near: Callable, kind: str) -> None:
    ops = recorded["ops"]
    for prefix in recorded.cases("ops", rf"{kind}\.N\d+\."):
        bits = int(prefix.split(".N")[1].rstrip("."))
        layer = conv_layer(recorded, prefix, ops["bits.w"], bits)
        if kind == "real":
            for name, key in (("pweight", "p"), ("nweight", "n"), ("scale", "scale")):
                set_tensor(layer, name, ops[prefix + key])
            r = planes.weighted_sum(layer.pweight, layer.nweight).abs() / planes.top(bits)
            assert int((r > 1).sum()) == int(ops[prefix + "n_clipped"])
        assert torch.equal(layer.pweight, ops[prefix + "p"].float())
        assert torch.equal(layer.nweight, ops[prefix + "n"].float())
        assert torch.equal(layer.scale, ops[prefix + "scale"]) and layer.scale.dim() == 0
        check_backward(layer, ops, prefix, ops["bits.x"], ops["bits.dy"], near)
        G = ops["bits.G"]
        grads = torch.autograd.grad((layer.effective() * G).sum(), list(layer.parameters()))
        for (name, _), grad in zip(layer.named_parameters(), grads, strict=True):
            near(grad, ops[f"{prefix}G_d_{name}"], f"{prefix}G {name}")


def test_linear_with_bias(recorded: Any, near: Callable) -> None:
    ops = recorded["ops"]
    for prefix in recorded.cases("ops", r"lin\.N\d+\."):
        bits = int(prefix.split(".N")[1].rstrip("."))
        w, b = ops["lin.w"], ops["lin.b"]
        linear = nn.Linear(w.shape[1], w.shape[0])
        linear.weight.data, linear.bias.data = w.clone(), b.clone()
        layer = BitLinear(linear, bits)
        for name, key in (("pweight", "p"), ("nweight", "n"), ("pbias", "pb"), ("nbias", "nb")):
            assert torch.equal(getattr(layer, name), ops[prefix + key].float()), prefix + key
        assert torch.equal(layer.scale, ops[prefix + "scale"])
        assert torch.equal(layer.biasscale, ops[prefix + "biasscale"])
        bias = layer.effective_bias()
        assert bias is not None
        near(bias, ops[prefix + "bq"], "bq")
        check_backward(layer, ops, prefix, ops["lin.x"], ops["lin.dy"], near)


def test_an_all_zero_weight_sets_no_bit(recorded: Any) -> None:
    layer = BitLinear(nn.Linear(3, 2, bias=False), 4)
    new = planes.from_float(torch.zeros_like(layer.effective()), 4)
    assert not new.p.any() and not new.n.any() and not bool(recorded["ops"]["zero.to_bin.any_bit"])
    assert new.scale.shape == () and new.scale.item() == recorded["ops"]["zero.to_bin.scale"].item()


def test_regulariser(recorded: Any, near: Callable) -> None:
    ops = recorded["ops"]
    for prefix in recorded.cases("ops", r"l1\.(conv|lin)\.N\d+\."):
        p, n = (ops[f"{prefix}{name}"].clone().requires_grad_() for name in ("pweight", "nweight"))
        value, leaves = planes.group_lasso(p, n), {"pweight": p, "nweight": n}
        if f"{prefix}pbias" in ops:
            pb, nb = (ops[f"{prefix}{name}"].clone().requires_grad_() for name in ("pbias", "nbias"))
            value, leaves = value + planes.group_lasso(pb, nb), leaves | {"pbias": pb, "nbias": nb}
        near(value, ops[f"{prefix}value"], prefix)
        for (name, _), grad in zip(leaves.items(), torch.autograd.grad(value, list(leaves.values())), strict=True):
            near(grad, ops[f"{prefix}d_{name}"], prefix + name)
