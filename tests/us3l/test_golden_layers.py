"""Layers against recorded numbers: rounding, outputs, gradients and statistics at every width."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.slim.layers import SlimConv2d, SlimLinear, at_width
from lowbit.slim.norms import SlimBatchNorm2d
from lowbit.slim.widths import channels_at, make_divisible

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
LAYERS = ["conv_tt", "conv_ft", "conv_tf", "conv_expand", "conv_dw", "conv_project", "lin_tt", "lin_tf"]
RATIOS = {"conv_expand": (1, 6), "conv_dw": (6, 6), "conv_project": (6, 1)}


def widths_of(arrays: dict[str, Tensor], name: str) -> list[str]:
    return sorted({key.split("/")[1] for key in arrays if key.startswith(f"{name}/w") and key.count("/") == 2})


def layer_of(arrays: dict[str, Tensor], name: str) -> Any:
    """The layer of these recorded tensors; stride and padding follow from their shapes."""
    weight, bias = arrays[f"{name}/weight"], arrays.get(f"{name}/bias")
    slim = (name[-2:] != "ft", name[-2:] != "tf")
    if name.startswith("lin"):
        layer: nn.Module = nn.Linear(weight.shape[1], weight.shape[0], bias is not None)
    else:
        x, gy = arrays[f"{name}/x"], arrays[f"{name}/gy"]
        kernel = weight.shape[-1]
        stride, groups = round(x.shape[-1] / gy.shape[-1]), weight.shape[0] if weight.shape[1] == 1 else 1
        layer = nn.Conv2d(x.shape[1], weight.shape[0], kernel, stride, kernel // 2, 1, groups, bias is not None)
    for key, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            setattr(layer, key, nn.Parameter(value.clone()))
    kind: Any = SlimLinear if name.startswith("lin") else SlimConv2d
    return kind(layer, tuple(ratio * side for ratio, side in zip(RATIOS.get(name, (1, 1)), slim, strict=True)))


def test_every_recorded_layer_is_compared(recorded: Any) -> None:
    assert {key.split("/")[0] for key in recorded["layers"]} == {*LAYERS, "bn", "bn_r6"}


@pytest.mark.parametrize("name", LAYERS)
def test_recorded_layers(recorded: Any, name: str) -> None:
    arrays = recorded["layers"]
    layer, widths = layer_of(arrays, name), widths_of(arrays, name)
    assert len(widths) >= 4
    for width in widths:
        with at_width(layer, float(width[1:])):
            x = arrays[f"{name}/x"][:, : layer.active_in].clone().requires_grad_()
            layer.zero_grad()
            y = layer(x)
            (y * arrays[f"{name}/gy"][:, : layer.active_out]).sum().backward()
            plain = layer.to_plain()
        torch.testing.assert_close(y, arrays[f"{name}/{width}/y"], **CLOSE)
        torch.testing.assert_close(x.grad, arrays[f"{name}/{width}/gx"], **CLOSE)
        for key, got in (("gw", layer.weight.grad), ("gb", None if layer.bias is None else layer.bias.grad)):
            wanted = arrays.get(f"{name}/{width}/{key}")
            assert (got is None) == (wanted is None)
            if got is not None:
                torch.testing.assert_close(got, wanted, **CLOSE)
                assert torch.equal(got == 0, wanted == 0)  # exact zeros outside the part that ran
        assert torch.equal(plain(x), y)
        assert type(plain) in (nn.Conv2d, nn.Linear) and plain.weight.numel() <= layer.weight.numel()


@pytest.mark.parametrize(("name", "ratio"), [("bn", 1), ("bn_r6", 6)])
def test_recorded_batch_norm(recorded: Any, name: str, ratio: int) -> None:
    arrays = recorded["layers"]
    start = nn.BatchNorm2d(len(arrays[f"{name}/weight"]))
    for key in ("weight", "bias", "running_mean", "running_var"):
        getattr(start, key).data.copy_(arrays[f"{name}/{key}"])
    for width in widths_of(arrays, name):
        norm = SlimBatchNorm2d(deepcopy(start), ratio)

        def run(norm: Any, what: str, width: str = width) -> Tensor:
            x = arrays[f"{name}/x"][:, : norm.active_in].clone().requires_grad_()
            with torch.enable_grad():
                y = norm(x)
                (y * arrays[f"{name}/gy"][:, : norm.active_in]).sum().backward()
            torch.testing.assert_close(y, arrays[f"{name}/{width}/{what}"], **CLOSE)
            return x

        with at_width(norm, float(width[1:])):
            run(norm.eval(), "y_eval")
            assert torch.equal(norm.to_plain()(x := torch.randn(2, norm.active_in, 3, 3)), norm(x))
            norm.zero_grad()
            x = run(norm.train(), "y_train")
            after = norm.to_plain()
        for key, got in (("gx", x.grad), ("gw", norm.weight.grad), ("gb", norm.bias.grad)):
            torch.testing.assert_close(got, arrays[f"{name}/{width}/{key}"], **CLOSE)
        for key in ("running_mean", "running_var"):
            got = getattr(norm, key)
            torch.testing.assert_close(got, arrays[f"{name}/{width}/{key}_after"], **CLOSE)
            assert torch.equal(got[norm.active_in :], arrays[f"{name}/{key}"][norm.active_in :])
            assert torch.equal(getattr(after, key), got[: after.num_features])
        assert int(norm.num_batches_tracked) == 0


@pytest.mark.parametrize(("name", "ratio"), [("bn", 1), ("bn_r6", 6)])
def test_recorded_statistics_after_steps_at_several_widths(recorded: Any, name: str, ratio: int) -> None:
    arrays = recorded["layers"]
    norm = SlimBatchNorm2d(nn.BatchNorm2d(len(arrays[f"{name}/weight"])), ratio)
    for width in (1.0, 0.25, 0.5, 0.25):
        with at_width(norm, width):
            norm(arrays[f"{name}/x"][:, : norm.active_in])
    torch.testing.assert_close(norm.running_mean, arrays[f"{name}/seq_running_mean"], **CLOSE)
    torch.testing.assert_close(norm.running_var, arrays[f"{name}/seq_running_var"], **CLOSE)


def test_recorded_rounding(recorded: Any) -> None:
    figures = recorded.json("make_divisible")
    for channels, by_width in figures["channels_times_width"].items():
        for width, wanted in by_width.items():
            assert make_divisible(int(channels) * float(width)) == wanted, (channels, width)
    for channels, by_width in figures["ratio6"].items():
        for width, wanted in by_width.items():
            assert channels_at(int(channels), float(width), 6) == wanted, (channels, width)
    for value, wanted in figures["raw_value"].items():
        assert make_divisible(float(value)) == wanted, value
