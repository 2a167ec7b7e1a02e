"""The whole ResNet-20 against the original's numbers, in float64: codes, widths, counts, logits, training steps."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsq import planes
from bsq.activation import quantize_bsq_activations_
from bsq.bit_layer import BIAS, WEIGHT
from bsq.compression import size
from bsq.network import (
    bit_layers,
    load_bits_,
    nbit_dict,
    ones_per_plane,
    prune_,
    requantize_,
    to_bit_form_,
    to_bits_,
    to_finetune_,
)

EXACT = 1e-8  # of the maximum; 1e-14 was seen

AUTHORS = pytest.param("authors", marks=[pytest.mark.data, pytest.mark.heavy])


@torch.no_grad()
def check_logits(model: nn.Module, x: Tensor, theirs: Tensor, near: Callable, what: str) -> None:
    near(model(x)[: len(theirs)], theirs, what, EXACT)


@pytest.mark.parametrize("who", ["formula", AUTHORS], indirect=True)
def test_logits_of_the_converted_net(recorded: Any, near: Callable, who: Any) -> None:
    arrays = recorded["network"]
    for prefix in recorded.cases("network", rf"{who.name}\.f64\.convert\d+\.act\d+\."):
        bits, act = map(int, re.findall(r"\d+", prefix.removeprefix(f"{who.name}.f64")))
        x, theirs = who.test[0], arrays[f"{prefix}quant.logits"]
        if f"{prefix}float.logits" in arrays:
            check_logits(who.converted(act, None), x, arrays[f"{prefix}float.logits"], near, f"{prefix}float")
        model = who.converted(act, bits)
        check_logits(model, x, theirs, near, prefix)
        if f"{prefix}finetune_form.logits" not in arrays:
            continue
        check_logits(to_finetune_(requantize_(model, 10)), x, theirs, near, f"{prefix}finetune form")
        without_bias = theirs - bit_layers(model)["fc"].effective(BIAS).detach()  # what the original computes there
        near(without_bias, arrays[f"{prefix}finetune_form.logits"], f"{prefix}the original's bug", EXACT)
        check_logits(to_bit_form_(model), x, theirs, near, f"{prefix}bit form again")


def test_codes_scales_and_counts(recorded: Any, near: Callable, who: Any) -> None:
    facts, model = recorded.json("network"), who.net()
    to_bits_(model, 8)
    check_codes(model, facts["codes"][who.name])
    scalars, found = facts["scalars"][who.name], size(model)
    assert (found.weights, found.bits) == (scalars["total_param"], scalars["total_bit"])
    assert found.compression == pytest.approx(scalars["compression"], abs=1e-12)
    assert nbit_dict(model) == facts["stats"][who.name]["Nbit_dict"]
    regulariser = torch.stack([layer.group_lasso() for layer in bit_layers(model).values()]).sum()
    assert regulariser.item() / found.weights == pytest.approx(scalars["reg_sum_over_TP"], rel=2e-7)
    for name, percents in ones_per_plane(model).items():
        assert percents["weight"] == pytest.approx(facts["stats"][who.name]["weight_percent"][name], abs=1e-9)
        if "bias" in percents:
            assert percents["bias"] == pytest.approx(facts["stats"][who.name]["bias_percent"][name], abs=1e-9)


def check_codes(model: nn.Module, facts: dict[str, Any]) -> None:
    assert list(facts) == list(bit_layers(model))
    for name, layer in bit_layers(model).items():
        code, theirs = layer.weight_codes().codes.flatten().long(), facts[name]
        position = torch.arange(code.numel()) % 997
        sums = (code.sum(), code.abs().sum(), code.square().sum(), (code * position).sum())
        keys = ("sum", "sum_abs", "sum_sq", "position_weighted")
        assert [int(s) for s in sums] == [theirs[key] for key in keys], name
        assert layer.scale.item() == theirs["scale"], name
        if "bias_codes" in theirs:
            bias = layer.bias_codes()
            assert bias is not None and bias.codes.tolist() == theirs["bias_codes"]
            assert layer.biasscale.item() == theirs["biasscale"]


def test_given_widths(recorded: Any, near: Callable, who: Any) -> None:
    arrays, facts = recorded["network"], recorded.json("network")["dict"]
    x = who.test[0][:5] if who.name == "authors" else who.test[0]
    model = to_bits_(who.net(), 8, widths=facts["given"])
    if who.name == "authors":
        check_codes(model, facts["codes_authors"])
    assert nbit_dict(model) == facts["result_after_to_finetune"]  # a dead layer is 0 in either form here
    assert size(model).compression == pytest.approx(facts["compression_after_to_finetune"], rel=1e-12)
    quantize_bsq_activations_(model, 4)
    check_logits(model.double().eval(), x, arrays[f"{who.name}.f64.dict.quant.logits"], near, "dict")
    float_net = who.converted(4, None)
    check_logits(float_net, x, arrays[f"{who.name}.f64.dict.float.logits"], near, "float")
    if f"{who.name}.f64.dict_bias0.quant.logits" in arrays:
        given = facts["given"] | {"fc": [facts["given"]["fc"][0], 0]}
        model = who.converted(4, 8, given)
        assert nbit_dict(model)["fc"] == facts["fc_result_when_bias_width_0_given"]
        check_logits(model, x, arrays[f"{who.name}.f64.dict_bias0.quant.logits"], near, "bias 0")


def test_the_authors_widths_load_and_a_dead_layer_reads_as_0(
    recorded: Any, filled_net: Callable[[], nn.Module]
) -> None:
    facts = recorded.json("network")["dict"]
    source = to_bits_(filled_net(), 8, widths=facts["given"])
    target = to_bits_(filled_net(), 8)
    load_bits_(target, source.state_dict(), facts["result"])  # says 1 for the dead layer
    assert nbit_dict(target) == nbit_dict(source) == facts["result_after_to_finetune"]


@pytest.mark.slow
def test_training_steps(recorded: Any, near: Callable, who: Any) -> None:
    """Five steps of SGD on everything with the clamp on bit planes alone; gradients of every parameter at the first.

    Through autograd and torch's SGD; what trains is held to the same numbers in test_objective.py.
    """
    arrays, settings = recorded["network"], recorded.json("network")["train_settings"]
    for prefix in recorded.cases("network", rf"{who.name}\.f64\.train\.bitplane_clamp[a-z_0-9]*\."):
        act = int((re.findall(r"_pact(\d+)", prefix) or ["4"])[0])
        model = who.converted(act).train()
        requantize_(prune_(model))
        total, layers = size(model).weights, bit_layers(model)
        (x, labels), record = who.train, {"ce": [], "reg_over_TP": [], "scales": []}
        keys = ("lr", "momentum", "weight_decay")
        optimizer = torch.optim.SGD(model.parameters(), **{key: settings[key] for key in keys})
        for step in range(settings["steps"]):
            ce = F.cross_entropy(model(x), labels)
            regulariser = torch.stack([layer.group_lasso() for layer in layers.values()]).sum() / total
            optimizer.zero_grad()
            (ce + settings["decay"] * regulariser).backward()
            if step == 0:
                check_gradients(model, recorded, prefix, near)
            optimizer.step()
            for name, parameter in model.named_parameters():
                if name.endswith(("pweight", "nweight", "pbias", "nbias")):
                    parameter.data.clamp_(0, 2)
            record["ce"].append(ce.item())
            record["reg_over_TP"].append(regulariser.item())
            record["scales"].append([layer.scale.item() for layer in layers.values()])
        for key, values in record.items():
            near(torch.tensor(values, dtype=torch.float64), arrays[prefix + key], prefix + key, EXACT)
        p, n, _ = layers["conv1"].planes(WEIGHT)
        near(p[: len(arrays[f"{prefix}conv1.p"])], arrays[f"{prefix}conv1.p"], "conv1.p", EXACT)
        near(n[: len(arrays[f"{prefix}conv1.n"])], arrays[f"{prefix}conv1.n"], "conv1.n", EXACT)
        requantize_(model)
        prune_(model)
        facts = recorded.json("network")["train"][prefix.replace(".train.", ".").rstrip(".")]
        assert nbit_dict(model) == facts["Nbit_dict_after_requantise"]
        check_logits(model.eval(), x, arrays[f"{prefix}logits_after_requantise"], near, prefix)


def check_gradients(model: nn.Module, recorded: Any, prefix: str, near: Callable) -> None:
    names = [key.removeprefix("module.") for key in recorded.json("keys")["bin8_order_of_parameters"]]
    ours = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    theirs = recorded["network"][f"{prefix}grad_norms_step1"]
    if len(ours) == len(names):  # with PACT the alphas stand in between
        near(torch.tensor([ours[name] for name in names], dtype=torch.float64), theirs, "gradients", EXACT)
    else:
        assert sorted(ours.values()) == pytest.approx(sorted(theirs.tolist()), rel=EXACT)


def test_growth_and_saturation_of_the_spec() -> None:
    """Three bits all at 2 grow to four, the value preserved; eight saturate; one bit at 2 becomes [1, 0]."""
    for bits, grown in ((3, 4), (8, 8), (1, 2)):
        two, zero = torch.full((2, bits), 2.0), torch.zeros(2, bits)
        new = planes.requantize(planes.Planes(two, zero, torch.tensor(0.5)))
        assert new.bits == grown
        if bits == 8:
            assert new.p.all()
        else:
            assert torch.allclose(planes.reconstruct(*new), torch.full((2,), 1.0))  # 2 x the scale
    assert new.p.tolist() == [[1, 0], [1, 0]]
