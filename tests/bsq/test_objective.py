"""BSQ's two objectives driven by hand, as the loop does: the original's training traces, autograd, clamps, memory."""

import re
import runpy
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bsq.activation import quantize_bsq_activations_
from bsq.bit_layer import WEIGHT
from bsq.network import bit_layers, nbit_dict, prune_, requantize_, to_bit_form_, to_bits_, to_finetune_
from bsq.objective import BitSparsity, FineTune
from bsq.planes import from_block
from bsq.sgd import PlaneSGD
from lowbit.data.batch import Batch
from lowbit.models.create import create_model
from lowbit.options import SgdOptions
from lowbit.quant.layers import quantizers
from lowbit.train.protocol import Clock, Objective, Out

fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_step.py")))
EXACT = 1e-8  # of the maximum; 1e-14 was seen
TRACES = r"{}\.f64\.train\.bitplane_clamp[a-z_0-9]*\."
CLOCK = Clock(0, 0, 1, 0, 1, 0)
MIXED = {"conv1": [8, 0], "layer1.0.conv1": [1, 0], "layer2.0.conv2": [0, 0], "layer3.0.conv1": [5, 0], "fc": [3, 6]}
PLANES = ("pweight", "nweight", "pbias", "nbias")

AUTHORS = pytest.param("authors", marks=[pytest.mark.data, pytest.mark.heavy])


def sparsity(model: nn.Module, strength: float = 0.01, **sgd: float) -> BitSparsity:
    def watch(*_: Any) -> Mapping[str, float]:
        return {}

    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, **sgd}
    return BitSparsity(
        model, SgdOptions(epochs=1, **options), strength=strength, interval=1, threshold=0.0,
        ceiling=lambda _: 8, floor=lambda _: 1, evaluate=watch,
    )  # fmt: skip


def step(objective: Objective, optimizers: Mapping[str, Optimizer], x: Tensor, label: Tensor) -> Out:
    """One batch, as `lowbit.train.engine` runs it."""
    (pas,) = objective.passes(CLOCK)
    for parameter in objective.parameters():
        parameter.grad = None
    out = objective(Batch((x,), torch.arange(len(x)), label), CLOCK, pas, None)
    out.loss.backward()
    for name in pas.step:
        optimizers[name].step()
    objective.after_step(CLOCK, pas)
    return out


def small_net(act: int = 4, widths: Any = None) -> nn.Module:
    torch.manual_seed(0)
    net = quantize_bsq_activations_(create_model("cifar_resnet8_1x1"), act)
    return to_bits_(net, 8, widths=widths).double().train()


def some_pictures(count: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, 3, 8, 8, dtype=torch.float64, generator=generator)
    return x, torch.arange(count) % 10


@pytest.mark.parametrize("who", ["formula", AUTHORS], indirect=True)
def test_training_traces_of_the_original(recorded: Any, near: Callable, who: Any) -> None:
    check_traces(recorded.cases("network", TRACES.format(who.name)), recorded, near, who)


def check_traces(prefixes: Sequence[str], recorded: Any, near: Callable, who: Any) -> None:
    """Against the original's."""
    arrays, settings = recorded["network"], recorded.json("network")["train_settings"]
    for prefix in prefixes:
        act = int((re.findall(r"_pact(\d+)", prefix) or ["4"])[0])
        model = prune_(who.converted(act).train())
        objective = sparsity(model, settings["decay"], **{k: settings[k] for k in ("lr", "momentum", "weight_decay")})
        optimizers, layers, (x, labels) = objective.optimizers(), bit_layers(model), who.train
        record: dict[str, list[Any]] = {"ce": [], "reg_over_TP": [], "total": [], "scales": []}
        for number in range(settings["steps"]):
            before = {name: tensor.clone() for name, tensor in model.named_parameters()}
            out = step(objective, optimizers, x, labels)
            if number == 0:
                check_gradients(model, optimizers["planes"], before, settings["weight_decay"], recorded, prefix, near)
            record["ce"].append(out.parts["ce"].item())
            record["reg_over_TP"].append(out.parts["reg"].item())
            record["total"].append(out.loss.item())
            record["scales"].append([layer.scale.item() for layer in layers.values()])
        for key, values in record.items():
            near(torch.tensor(values, dtype=torch.float64), arrays[prefix + key], prefix + key, EXACT)
        for planes, key in zip(layers["conv1"].planes(WEIGHT), ("conv1.p", "conv1.n"), strict=False):
            near(planes[: len(arrays[prefix + key])], arrays[prefix + key], prefix + key, EXACT)
        check_unclamped(model, arrays, prefix, near)
        objective.end_stage(CLOCK, lambda: ())
        facts = recorded.json("network")["train"][prefix.replace(".train.", ".").rstrip(".")]
        (line,) = objective.records
        assert line["event"] == "requantize" and line["bits"] == facts["Nbit_dict_after_requantise"]
        theirs = arrays[f"{prefix}logits_after_requantise"]
        with torch.no_grad():
            near(model.eval()(x)[: len(theirs)], theirs, prefix, EXACT)


def check_gradients(
    model: nn.Module, optimizer: Optimizer, before: dict[str, Tensor], decay: float, recorded: Any, prefix: str,
    near: Callable,
) -> None:  # fmt: skip
    """A plane's gradient is never formed; the momentum after the first step is it, with the weight decay."""
    assert isinstance(optimizer, PlaneSGD)
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    names = {layer: name for name, layer in bit_layers(model).items()}
    for layer, keys, leaf, _ in optimizer.slots:
        del norms[f"{names[layer]}.{keys.dense}"]
        state = optimizer.state[leaf]
        for key, moved in zip(keys[:3], (*from_block(state["planes"]), state["scale"]), strict=True):
            name = f"{names[layer]}.{key}"
            norms[name] = (moved - decay * before[name]).norm().item()
    theirs = recorded["network"][f"{prefix}grad_norms_step1"]
    order = [key.removeprefix("module.") for key in recorded.json("keys")["bin8_order_of_parameters"]]
    if len(norms) == len(order):  # with PACT the alphas stand in between
        near(torch.tensor([norms[name] for name in order], dtype=torch.float64), theirs, "gradients", EXACT)
    else:
        assert sorted(norms.values()) == pytest.approx(sorted(theirs.tolist()), rel=EXACT)


def check_unclamped(model: nn.Module, arrays: dict[str, Tensor], prefix: str, near: Callable) -> None:
    """Shortcuts keep their negative weights, PACT's alphas stay beyond 2."""
    found = []
    for stage in (2, 3):
        conv, norm = model.get_submodule(f"layer{stage}.0.downsample")
        found += [conv.weight, norm.weight, norm.bias]  # type: ignore[union-attr]
    negative = [int((tensor < 0).sum()) for tensor in found]
    assert negative == arrays[f"{prefix}downsample_negative_count"].tolist() and negative[0] > 0
    sums = torch.stack([tensor.detach().sum() for tensor in found])  # type: ignore[union-attr]
    near(sums, arrays[f"{prefix}downsample_weight_sum"], "shortcuts", EXACT)
    alphas = [q.alpha.detach() for q in quantizers(model).values() if q.alpha is not None]
    if alphas:
        near(torch.stack(alphas), arrays[f"{prefix}alphas"], "alphas", EXACT)
        assert torch.stack(alphas).min() > 2


@pytest.mark.parametrize(("act", "widths"), [(4, None), (3, MIXED)])
def test_plane_sgd_is_autograd_sgd_and_a_clamp(act: int, widths: Any) -> None:
    """Also for mixed widths, a dead layer and biases of other widths."""
    a = small_net(act, widths)
    b, (x, label) = deepcopy(a), some_pictures()
    objective = sparsity(b, 0.05)
    optimizers = objective.optimizers()
    sgd, layers = SGD(a.parameters(), 0.1, 0.9, weight_decay=1e-4), bit_layers(a)
    total = sum(layer.numel(keys) for layer in layers.values() for keys in layer.tensors)
    for _ in range(5):
        lasso = torch.stack([layer.group_lasso() for layer in layers.values()]).sum() / total
        loss = F.cross_entropy(a(x), label) + 0.05 * lasso
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        for name, parameter in a.named_parameters():
            if name.endswith(PLANES):
                parameter.data.clamp_(0, 2)
        out = step(objective, optimizers, x, label)
        assert out.loss.item() == pytest.approx(loss.item(), rel=1e-12)
        for (name, ours), theirs in zip(b.state_dict().items(), a.state_dict().values(), strict=True):
            assert torch.allclose(ours.double(), theirs.double(), rtol=1e-10, atol=1e-12), name
    assert (b.conv1.pweight > 1).any() and (b.conv1.pweight == 0).any()


def test_only_planes_are_clamped() -> None:
    net, (x, label) = small_net(act=3), some_pictures()
    shortcut, alpha = net.layer2[0].downsample, net.layer1[0].relu1.alpha
    with torch.no_grad():
        net.conv1.pweight[0] = 5.0
        net.conv1.scale.fill_(3.0)
        shortcut[0].weight[:4], shortcut[1].bias[:4] = -3.0, -4.0
    objective = sparsity(net, lr=1e-6)
    step(objective, objective.optimizers(), x, label)
    assert all((p >= 0).all() and (p <= 2).all() for name, p in net.named_parameters() if name.endswith(PLANES))
    assert (net.conv1.pweight[0] == 2).all() and net.conv1.scale > 2.9
    assert (shortcut[0].weight[:4] < -2.9).all() and (shortcut[1].bias[:4] < -3.9).all() and alpha > 9.9


def test_no_lasso_at_strength_0() -> None:
    net, (x, label) = small_net(), some_pictures()
    objective = sparsity(net, 0.0)
    out = step(objective, objective.optimizers(), x, label)
    assert out.loss.item() == out.parts["ce"].item() and out.parts["reg"] > 0


def test_requantising_needs_new_optimizers_and_says_so() -> None:
    net, (x, label) = small_net(), some_pictures()
    objective = sparsity(net)
    objective.interval = 2
    optimizers = objective.optimizers()
    step(objective, optimizers, x, label)
    assert not objective.begin_epoch(CLOCK._replace(epoch=1, epochs=4), lambda: ())
    old = net.conv1.pweight
    assert objective.begin_epoch(CLOCK._replace(epoch=2, epochs=4), lambda: ())
    assert net.conv1.pweight is not old and set(net.conv1.pweight.unique().tolist()) <= {0.0, 1.0}
    assert "dense_weight" not in dict(net.conv1.named_parameters()) and net.conv1.pweight.requires_grad
    step(objective, objective.optimizers(), x, label)


@pytest.mark.parametrize(
    "change", [nn.Module.double, lambda net: net.load_state_dict(net.state_dict()), lambda net: requantize_(net)]
)
def test_planes_that_moved_under_their_optimizer_are_told(change: Callable) -> None:
    model = to_bits_(nn.Sequential(nn.Linear(4, 3)), 4)
    optimizer = PlaneSGD(list(bit_layers(model).values()), lr=0.1)
    optimizer.step()
    change(model)
    with pytest.raises(RuntimeError, match="moved"):
        optimizer.step()


def test_state_dicts_hold_no_dense_leaves() -> None:
    net, (x, label) = small_net(), some_pictures()
    keys = list(net.state_dict())
    objective = sparsity(net)
    step(objective, objective.optimizers(), x, label)
    assert list(net.state_dict()) == keys
    assert list(objective.state_dict()) == [f"student.{key}" for key in keys]
    assert sum("dense" in name for name, _ in net.named_parameters()) == len(bit_layers(net)) + 1  # and fc's bias


def test_planes_and_momentum_are_32_floats_a_weight() -> None:
    """At 8 bits, counted between two steps: distinct storages of planes and of the optimizer's state."""
    net, (x, label) = small_net().float(), some_pictures()
    objective = sparsity(net)
    optimizers = objective.optimizers()
    step(objective, optimizers, x.float(), label)
    layers = bit_layers(net).values()
    held = [p for layer in layers for p in layer.parameters(recurse=False)]
    dense = [layer.dense(keys) for layer in layers for keys in layer.tensors]
    scales = [layer.planes(keys).scale for layer in layers for keys in layer.tensors]
    held += [tensor for state in optimizers["planes"].state.values() for tensor in state.values()]
    held += [p.grad for p in held if p.grad is not None]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in held}
    weights = sum(layer.numel(keys) for layer in layers for keys in layer.tensors)
    floats = sum(storages.values()) // 4 - 2 * len(scales) - 2 * sum(leaf.numel() for leaf in dense)
    assert floats == 32 * weights
    assert all(p.grad is None for name, p in net.named_parameters() if name.endswith(PLANES))


@pytest.mark.parametrize("kind", fake.KINDS)
@pytest.mark.parametrize("act", [4, 3, 0])
def test_a_step_reads_no_value_back_and_mixes_no_devices(act: int, kind: str) -> None:
    """Both objectives, with activations of fixed and of trained range and float ones; biases, a dead layer."""
    x, label = some_pictures()
    batch = Batch((x.float(),), torch.arange(len(x)), label)
    fake.run_steps(kind, sparsity(small_net(act, MIXED).float()), batch, clip_grad=1.0)
    fake.run_steps(kind, FineTune(to_finetune_(small_net(act, MIXED).float()), SgdOptions(epochs=1)), batch)


def test_finetune_form_computes_with_the_bias() -> None:
    net, (x, _) = small_net(widths=MIXED).eval(), some_pictures()
    with torch.no_grad():
        net.fc.pbias[:, 0], net.fc.nbias[:, 0], net.fc.biasscale.data = 1.0, 0.0, torch.tensor(3.0).double()
        before, bias = net(x), net.fc.effective_bias()
        after = to_finetune_(net)(x)
        assert bias.abs().min() > 0 and torch.allclose(after, before, rtol=0, atol=1e-12)
        assert torch.allclose(to_bit_form_(net)(x), before, rtol=0, atol=1e-12)


def test_finetune_clamps_latents_alone_and_trains_the_bias() -> None:
    net, (x, label) = to_finetune_(small_net(act=3, widths=MIXED)), some_pictures()
    widths, shortcut = nbit_dict(net), net.layer2[0].downsample
    with torch.no_grad():
        net.conv1.weight[0], net.conv1.weight[1], net.fc.bias[0] = 5.0, -5.0, 5.0
        net.conv1.scale.fill_(3.0)
        shortcut[0].weight[:4], shortcut[1].weight[:4], shortcut[1].bias[:4] = -3.0, 4.0, -4.0
    free = {name: p.detach().clone() for name, p in net.named_parameters()}
    objective = FineTune(net, SgdOptions(epochs=1, lr=0.01, weight_decay=1e-4))
    step(objective, objective.optimizers(), x, label)
    assert net.fc.bias.grad is not None and (net.fc.bias.grad != 0).any()
    latents = {f"{name}.{keys.latent}" for name, layer in bit_layers(net).items() for keys in layer.tensors}
    for name, parameter in net.named_parameters():
        expected = free[name] - 0.01 * (parameter.grad + 1e-4 * free[name])
        expected = expected.clamp(-1, 1) if name in latents else expected
        assert torch.allclose(parameter, expected, rtol=0, atol=1e-12), name
    assert (net.conv1.weight[0] == 1).all() and (net.conv1.weight[1] == -1).all() and net.fc.bias[0] == 1
    assert shortcut[0].weight.min() < -2 and net.layer1[0].relu1.alpha > 9 and nbit_dict(net) == widths
