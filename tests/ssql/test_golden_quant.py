"""Quantizers and observers against the original program: codes and zero points exactly, the rest to the last bits."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lowbit.quant.observers import Observer, ObserverConfig
from lowbit.quant.uniform import (
    WeightConfig,
    asymmetric_grid,
    integer_codes,
    quantize_activation_range,
    quantize_weight,
    weight_grid,
)

Arrays = dict[str, Tensor]


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> bool:
    return ours.shape == theirs.shape and bool((ours - theirs).abs().max() <= tolerance)


@pytest.mark.parametrize("tag", ["ch", "pt"])
@pytest.mark.parametrize("differentiable", [True, False])
def test_weights(recorded: Any, tag: str, differentiable: bool) -> None:
    rec: Arrays = recorded["quantizers"]
    config = WeightConfig(per_channel=tag == "ch", differentiable_scale=differentiable)
    assert len(rec["wq_bits"]) >= 4
    for number, bits in enumerate(rec["wq_bits"]):
        w = rec["wq_w"].clone().requires_grad_()
        y = quantize_weight(w, bits, config)
        y.backward(rec["wq_g"])
        grid = weight_grid(w.detach(), bits, config)
        assert torch.equal(grid.scale.flatten(), rec[f"wq_{tag}_scale"][number])
        assert torch.equal(integer_codes(w.detach(), grid), rec[f"wq_{tag}_codes"][number].int())
        assert torch.equal(y.detach(), rec[f"wq_{tag}_out"][number])
        gradient = rec[f"wq_{tag}_grad" if differentiable else f"wq_{tag}_grad_detached"][number]
        assert w.grad is not None and close(w.grad, gradient, 2e-6)


def test_the_two_gradients_differ() -> None:
    """The recorded difference is real: the term on the extreme weight is there or not."""
    w, g = torch.randn(2, 8, 4, 3, 3, generator=torch.Generator().manual_seed(1)).unbind()
    grads = []
    for differentiable in (False, True):
        leaf = w.clone().requires_grad_()
        quantize_weight(leaf, torch.tensor(2), WeightConfig(differentiable_scale=differentiable)).backward(g)
        grads.append(leaf.grad)
    assert grads[0] is not None and grads[1] is not None
    assert int((grads[0] != grads[1]).sum()) == 8  # one weight a channel


def test_a_zero_channel_disables_itself_alone(recorded: Any) -> None:
    """The original then returns the whole tensor unquantized; here the others are what they are at 4 bits."""
    rec: Arrays = recorded["quantizers"]
    four = rec["wq_bits"].tolist().index(4)
    w = rec["wz_w"].clone().requires_grad_()
    y = quantize_weight(w, torch.tensor(4))
    y.backward(rec["wq_g"])
    zero = int(rec["wz_scale"].eq(0).nonzero())
    others = [channel for channel in range(len(w)) if channel != zero]
    assert not y[zero].any() and w.grad is not None
    assert torch.equal(y.detach()[others], rec["wq_ch_out"][four][others])
    assert close(w.grad[others], rec["wq_ch_grad_detached"][four][others], 2e-6)
    assert torch.equal(w.grad[zero], rec["wq_g"][zero])


@pytest.mark.parametrize("kind", ["relu", "signed", "offset"])
@pytest.mark.parametrize("batch", ["", "2"])
def test_activations(recorded: Any, kind: str, batch: str) -> None:
    rec: Arrays = recorded["quantizers"]
    for number, bits in enumerate(rec["aq_bits"]):
        low, high = rec[f"aq_{kind}_min"][number], rec[f"aq_{kind}_max"][number]
        grid = asymmetric_grid(low, high, bits)
        assert torch.equal(grid.scale, rec[f"aq_{kind}_scale"][number])
        assert torch.equal(grid.zero_point, rec[f"aq_{kind}_zp"][number])
        x = rec[f"aq_{kind}_x{batch}"].clone().requires_grad_()
        y = quantize_activation_range(x, low, high, bits)
        y.backward(rec[f"aq_{kind}_g"])
        assert torch.equal(integer_codes(x.detach(), grid), rec[f"aq_{kind}_codes{batch}"][number].int())
        assert close(y.detach(), rec[f"aq_{kind}_out{batch}"][number], 4e-7)
        assert x.grad is not None and close(x.grad, rec[f"aq_{kind}_grad{batch}"][number], 4e-7)


@pytest.mark.parametrize("tag", ["minmax", "gauss", "mom99", "mom90", "mom90reset", "mse"])
@pytest.mark.parametrize("per", ["pt", "ch"])
def test_observers(recorded: Any, tag: str, per: str) -> None:
    """`mom99` and `mom90` average the extremes so far; ours average those of the batch, so they are fed the former."""
    rec: Arrays = recorded["observers"]
    names = {"minmax": ("minmax", 0.9), "gauss": ("gaussian", 0.9), "mse": ("mse", 0.9), "mom99": ("ema", 0.99)}
    config = ObserverConfig(*names.get(tag, ("ema", 0.9)))
    channels = rec["ob_x1"].shape[1] if per == "ch" else None
    for number, bits in enumerate(rec["ob_bits"]):
        observer, so_far = Observer(config, channels), Observer(ObserverConfig(), channels)
        for time, x in enumerate((rec["ob_x1"], rec["ob_x2"])):
            so_far(x, bits)
            observer(torch.stack([so_far.low, so_far.high]) if tag in ("mom99", "mom90") else x, bits)
            where = (number, time) if tag == "mse" else (time,)
            grid = asymmetric_grid(observer.low, observer.high, bits)
            assert close(observer.low, rec[f"ob_{tag}_{per}_min"][where], 4e-7)
            assert close(observer.high, rec[f"ob_{tag}_{per}_max"][where], 4e-7)
            assert close(grid.scale, rec[f"ob_{tag}_{per}_scale"][number, time], 4e-7)
            assert torch.equal(grid.zero_point, rec[f"ob_{tag}_{per}_zp"][number, time])
