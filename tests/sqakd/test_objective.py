"""The objective against recorded numbers: losses, five steps of the authors' program; what is read, what is frozen."""

import runpy
from copy import deepcopy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.losses.distillation import softened_divergence
from lowbit.models.create import create_model
from lowbit.quant.initialize import initialize_
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import layer_points, learned_layers, quantize_learned_
from lowbit.train.protocol import Clock, Pass
from sqakd.objective import Sqakd
from sqakd.optim import optimizers, rates, tiny_schedule
from sqakd.options import TrainOptions

CLOCK = Clock(0, 0, 4, 0, 2, 0)
fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_step.py")))
OWN = TrainOptions(command="train_quant", arch="cifar_resnet20_pad")


def close(found: Tensor, expected: Tensor, relative: float) -> None:
    error = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert found.shape == expected.shape and error < relative, error


def quantized(net: nn.Module, quantizer: str, bits: int, delta: float = 0.0) -> nn.Module:
    config = LearnedConfig(quantizer, bits, delta)
    return quantize_learned_(net, layer_points(net), lambda name: (config, config))


@pytest.mark.parametrize("temperature", [1, 2, 4])
def test_recorded_divergence(recorded: Any, temperature: int) -> None:
    kd = recorded["kd"]
    student = kd["logit_s"].double().requires_grad_()
    loss = softened_divergence(student, kd["logit_t"].double(), float(temperature))
    close(loss, kd[f"kl.T{temperature}.loss"].double(), 5e-7)
    loss.backward()
    assert student.grad is not None
    close(student.grad, kd[f"kl.T{temperature}.g_logit_s"].double(), 1e-6)


def test_recorded_cross_entropies(recorded: Any) -> None:
    kd = recorded["kd"]
    for smoothing, names in ((0.0, ("ce", "logit_s", "labels")), (0.1, ("ls", "ls.logit", "ls.labels"))):
        name, logits, labels = names
        net = nn.Identity()
        objective = Sqakd(net, lambda student: {}, alpha=0.0, gamma=1.0, smoothing=smoothing)
        leaf = kd[logits].double().requires_grad_()
        out = objective(Batch((leaf,), torch.arange(6), kd[labels].long()), CLOCK, Pass(), None)
        close(out.loss, kd[f"{name}.loss"].double(), 5e-7)
        out.loss.backward()
        assert leaf.grad is not None
        close(leaf.grad, kd[f"{name}.g_{logits.removeprefix('ls.')}"].double(), 2e-6)


def test_recorded_steps(recorded: Any) -> None:
    """Five steps of Adam and Adam at 2 bits, float64, labels given and not read."""
    z = recorded["train5"]
    net = recorded.fill_(create_model("cifar_resnet20_pad"), "resnet20_fp", {"linear.": "fc."}).double()
    nets = recorded["nets"]
    own = net.state_dict()
    for key in (key for key in nets if key.startswith("cal.") and key.removeprefix("cal.") in own):
        own[key.removeprefix("cal.")].copy_(nets[key])
    teacher, x = deepcopy(net), recorded.pictures((16, 3, 32, 32))
    initialize_(quantized(net, "ste", 2).train(), [x])
    objective = Sqakd(net, partial(optimizers, OWN), teacher, gamma=0.0, alpha=1.0).double().train()
    made = objective.optimizers()
    assert list(made) == ["main", "quantizer"] and list(objective.passes(CLOCK)[0].step) == list(made)
    for optimizer, rate in zip(made.values(), rates(OWN).values(), strict=True):
        optimizer.param_groups[0]["lr"] = rate(CLOCK)
    for step in range(5):
        out = objective(Batch((x,), torch.arange(16), torch.full((16,), 10**6)), CLOCK, Pass(), None)
        close(out.loss, z["f64.losses"][step, 1], 1e-10)
        objective.zero_grad()
        out.loss.backward()
        for optimizer in made.values():
            optimizer.step()
        close(intervals(net), z[f"f64.step{step}.q"], 1e-8)
        close(net.get_submodule("fc").bias, z[f"f64.step{step}.linear.bias"], 1e-8)  # type: ignore[arg-type]
    close(net.eval()(recorded.pictures((2, 3, 32, 32), 1)), z["f64.final.eval_logits2"], 1e-7)
    assert all(p.grad is None for p in teacher.parameters()) and not teacher.training


def intervals(net: nn.Module) -> Tensor:
    rows = []
    for layer in learned_layers(net).values():
        weight, given = layer.weight_quantizer, layer.input_quantizer
        ends = (weight.interval.low, weight.interval.high, given.interval.low, given.interval.high)  # type: ignore
        rows.append(torch.stack([*ends, weight.output_scale]))  # type: ignore[union-attr]
    return torch.stack(rows)


def test_momentum_is_that_of_sgd() -> None:
    own = TrainOptions(command="train_quant", arch="x", optimizer_q="sgd", momentum=0.5)
    main, quantizer = optimizers(own, quantized(create_model("cifar_resnet8_1x1"), "pact", 4)).values()
    assert main.defaults["betas"] == (0.9, 0.999) and quantizer.defaults["momentum"] == 0.5


def test_recorded_rates(recorded: Any) -> None:
    z = recorded["sched"]
    for name in (name for name in z if name.startswith("cosine.") and name.endswith(".lr")):
        base, epochs = float(name.split(".lr")[1].partition(".E")[0]), int(name.split(".E")[1].split(".")[0])
        rate = rates(TrainOptions(command="train_fp", arch="x", lr_m=base, epochs=epochs))["main"]
        at = z[f"{name.removesuffix('.lr')}.epoch"]
        found = [rate(Clock(0, int(epoch), epochs, 7, 196, 0)) for epoch in at]
        close(torch.tensor(found, dtype=torch.float64), z[name], 1e-12)
    for total in (156300, 312500):
        for peak in (0.05, 0.0005, 0.004):
            rate = tiny_schedule(peak, 2500)
            steps = total // 100
            clocks = [Clock(0, int(t) // steps, 100, int(t) % steps, steps, 0) for t in z[f"tiny.T{total}.iter"]]
            expected = z[f"tiny.T{total}.lr{peak}"]
            close(torch.tensor([rate(clock) for clock in clocks], dtype=torch.float64), expected, 1e-12)


def test_alpha_times_rate_is_what_counts_under_sgd() -> None:
    """(lr, alpha, decay) and (lr alpha, 1, decay / alpha) are one training; so are gamma and the rate of labels."""
    x, label = torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8)
    found = []
    for lr, weight, decay in ((1e-3, 10.0, 1e-2), (1e-2, 1.0, 1e-3)):
        torch.manual_seed(0)
        net, teacher = (create_model("cifar_resnet8_1x1").double() for _ in range(2))
        own = TrainOptions(command="main", arch="x", optimizer_m="sgd", lr_m=lr, weight_decay=decay, nesterov=True)
        for objective in (Sqakd(net, partial(optimizers, own), teacher, alpha=weight).train(),
                          Sqakd(net, partial(optimizers, own), gamma=weight).train()):  # fmt: skip
            optimizer = objective.optimizers()["main"]
            for _ in range(2):
                optimizer.zero_grad()
                objective(Batch((x,), label, label), CLOCK, Pass(), None).loss.backward()
                optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    close(*found, 1e-10)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("quantizer", "kind"), [*(("ewgs", kind) for kind in fake.KINDS), *(("lsq", kind) for kind in fake.KINDS)]
)
def test_a_step_without_labels_reads_nothing_back_and_stays_on_its_device(quantizer: str, kind: Any) -> None:
    """Student, teacher and both optimizers on tensors without values (fake_step.py)."""
    torch.manual_seed(0)
    net, x = create_model("cifar_resnet8_1x1"), torch.randn(6, 3, 8, 8)
    teacher = deepcopy(net)
    initialize_(quantized(net, quantizer, 4, 1e-3).train(), [x])
    objective = Sqakd(net, partial(optimizers, OWN), teacher).train()
    fake.run_steps(kind, objective, Batch((x,), torch.arange(6), None), rates=("main", "quantizer"), clip_grad=1.0)


def test_scales_follow_the_hessian_of_the_loss() -> None:
    """Every second epoch, without labels; batch norm keeps its statistics, the same again when it is repeated."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 10))
    net, x = nn.Sequential(*layers), torch.randn(6, 3, 8, 8)
    teacher, config = deepcopy(net), LearnedConfig("ewgs", 2, 1e-3)
    initialize_(quantize_learned_(net, ["3"], lambda name: (config, config)).train(), [x])
    objective = Sqakd(net, partial(optimizers, OWN), teacher, hessian_every=2).train()
    assert not objective.needs_labels
    before = {name: value.clone() for name, value in net.state_dict().items()}
    batches = lambda: iter([Batch((x,), torch.arange(6), None)] * 4)  # noqa: E731
    objective.begin_epoch(CLOCK, batches)
    objective.begin_epoch(CLOCK._replace(epoch=1), batches)
    assert not objective.records
    after = []
    for _ in range(2):
        objective.begin_epoch(CLOCK._replace(epoch=2), batches)
        after.append({name: value.clone() for name, value in net.state_dict().items()})
    changed = {name for name in before if not torch.equal(before[name], after[0][name])} - {
        name for name in before if name.endswith("num_batches_tracked")
    }
    assert changed and all(name.endswith(".delta") for name in changed)
    assert all(torch.equal(after[0][name], after[1][name]) for name in changed)
    assert [record["event"] for record in objective.records] == ["hessian"] * 2
