"""Losses, builders, four iterations of each method and learning rates of the original program, in float64.

Recorded are a small real-valued encoder, a small one of the original's blocks in both steps, and ReActNet-A itself
(minutes: one of six is heavy, the others slow). Read-back by the recording's own second implementation: losses 3e-7,
in double precision 1e-13.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from recorded import Recorded as Arrays
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.losses.contrastive import info_nce
from lowbit.losses.distillation import soft_cross_entropy
from lowbit.losses.queue import KeyQueue
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, attach_projector_, build_heads, projector
from lowbit.models.reactnet import Block, ReActNet
from lowbit.quant.binary import binarize_
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Pass, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant
from s2bnn.load import used
from s2bnn.objective import S2bnn
from s2bnn.optim import optimizer, pretrain_rate, rate
from s2bnn.options import METHODS, LinclsOptions, pretrain_options

NAMES = dict(zip(("contrastive", "both", "distill"), METHODS, strict=True))
OWN = {"teacher_path": Path("stored"), "moco_t": 0.2, "mlp": True}
SEEN = {"loss": "loss", "loss_cl": "loss_cl", "loss_kd": "loss_kd", "top1": "acc1", "top5": "acc5"}
OPTIONS = pretrain_options(METHODS[0], 2, (), None)
SHOWN = ((2, "both"),)  # of ReActNet-A, in CI
Tensors = Mapping[str, Tensor]


class Recorded(Arrays):
    """Arrays of both files by their own names."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.arrays = {**super().__getitem__("moco"), **super().__getitem__("ops")}
        self.phase = float(self.arrays["s"])

    def __getitem__(self, key: str) -> Tensor:
        return self.arrays[key]

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}

    def pictures(self, batch: int, side: int, shift: float) -> Tensor:
        i = torch.arange(batch * 3 * side * side, dtype=torch.float64)
        return torch.sin(0.01 * i * i + (self.phase + shift)).float().double().view(batch, 3, side, side)

    def fill(self, file: str, keys: Callable[[str], bool]) -> dict[str, Tensor]:
        """Values of a list of keys that is filled by a formula, with a phase for each position."""
        phase, found = {1.9: 1.3, 2.6: 1.7}[self.phase], {}
        names = self.json("keys")[file]
        listed = {key for key, *_ in names}
        for k, (key, shape, _) in enumerate(names):
            if not keys(key) or "queue" in key:
                continue
            count = int(np.prod(shape))
            s = torch.arange(count, dtype=torch.float64).mul_(0.7).add_(phase * k).add_(0.1).sin_()
            if not shape:
                s = torch.zeros(1)
            elif len(shape) > 1 and not key.endswith("bias"):
                s.mul_((2 / (count / shape[0])) ** 0.5)
            elif "prelu" in key:
                s.mul_(0.1).add_(0.25)
            else:
                norm = key.removesuffix("weight") + "running_mean" in listed
                s.mul_(0.1).add_(1 if key.endswith("running_var") or (key.endswith("weight") and norm) else 0)
            found[key] = s.view(shape).float()
        return found


@pytest.fixture(scope="module")
def recorded(golden: Callable[[str], Path]) -> Recorded:
    return Recorded(golden("s2bnn"))


def close(ours: Tensor, theirs: Tensor, limit: float) -> bool:
    return bool((ours.double() - theirs.double()).abs().max() <= limit * theirs.double().abs().max())


class StandIn(nn.Module):
    """Two convolutions, average, head."""

    def __init__(self, width: int, out: int, dim: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, out, 3, 2, 1, bias=False), nn.BatchNorm2d(out)
        self.fc = projector(out, out, dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def mini(dim: int, step: int) -> nn.Module:
    net: Any = ReActNet(channels=(8, 16, 16))
    net.feature[1] = Block(8, 16, 2)
    binarize_(net, step).fc = projector(16, 16, dim, 2)
    return net


class Nets(NamedTuple):
    """A recorded student with its start, and its teacher."""

    student: nn.Module
    start: dict[str, Tensor]
    teacher: nn.Module
    batch: int
    side: int


def nets(recorded: Recorded, which: str, step: int) -> Nets:
    _, dim, batch, _ = recorded["cfg_K_dim_batch_ptr0"].tolist()
    if which == "react":
        student: nn.Module = binarize_(create_model("reactnet_a", num_classes=1), step)
        teacher: nn.Module = create_model("resnet18", num_classes=1)
        for net in (student, teacher):
            attach_projector_(net, lambda width: build_heads(HEADS["MoCo"], width, 128, width))
        filled = recorded.fill("pretrain_checkpoint_state_dict_mlp_K64", lambda key: "encoder_" in key)
        start = {key.removeprefix("module."): value for key, value in filled.items()}
        start |= {"queue": recorded["react.queue0"], "queue_ptr": torch.zeros(1, dtype=torch.int64)}
        weights = recorded.fill("teacher_resnet18_mlp", lambda key: True)
        weights = {key.removeprefix("module.").removeprefix("encoder_q."): value for key, value in weights.items()}
        batch, side = 4, 64
    else:
        start, weights, side = recorded.under(f"{which}.w."), recorded.under("teacher.w.encoder_q."), 32
        wide, narrow = (state["conv2.weight"].shape for state in (recorded.under("standin.w.encoder_q."), weights))
        student = StandIn(wide[1], wide[0], dim) if which == "standin" else mini(dim, step)
        teacher = StandIn(narrow[1], narrow[0], dim)
    teacher.load_state_dict(weights)
    own = {f"keys.{key}": value for key, value in start.items() if "queue" in key}
    own |= under(start, "encoder_q.", student) | under(start, "encoder_k.", student)
    return Nets(student, own, teacher.eval(), batch, side)


def under(start: Tensors, place: str, net: nn.Module) -> dict[str, Tensor]:
    """An encoder's tensors without those that its blocks do not use."""
    inside = {key.removeprefix(place): value for key, value in start.items() if key.startswith(place)}
    return {place + key: value for key, value in used(inside, net.state_dict()).items()}


def objective_of(recorded: Recorded, method: str, made: Nets, momentum: float = 0.999, lr: float = 3e-4) -> S2bnn:
    own = pretrain_options(NAMES[method], 2, (), 0.0, lr=lr, **OWN)
    dim, length = made.start["keys.queue"].shape
    keys = KeyQueue(dim, length, torch.Generator()) if own.contrasts else None
    objective = S2bnn(
        made.student, partial(optimizer, own, "adam"), temperature=0.2, keys=keys, momentum=momentum,
        teacher=made.teacher if own.distils else None,
    )  # fmt: skip
    start = made.start if own.contrasts else {k: v for k, v in made.start.items() if k.startswith("encoder_q.")}
    missing, unexpected = objective.load_state_dict(start, strict=False)
    assert not unexpected and all(key.startswith("teacher.") for key in missing)
    return objective.double().train()


def engine_of(objective: S2bnn, lr: float) -> tuple[Engine, list[dict[str, float]]]:
    stage = Stage(objective, 1, {"main": constant(lr)})
    engine = Engine(stage, Run(accelerator=make_accelerator("no", cpu=True)), Meter())
    engine.build()
    seen: list[dict[str, float]] = []

    def note(module: Any, args: Any, out: Any) -> None:
        seen.append({"loss": out.loss.item(), **{key: value.item() for key, value in out.parts.items()}})

    objective.register_forward_hook(note)
    return engine, seen


def norms(net: nn.Module, names: list[str]) -> Tensor:
    """Of the parameters; those that ours has not are 0."""
    own = dict(net.named_parameters())
    return torch.stack([own[name].detach().norm() if name in own else torch.zeros(()).double() for name in names])


def trained(recorded: Recorded, which: str, step: int, method: str, at: str, lr: float, limit: float) -> S2bnn:
    """Four iterations, whose losses are compared."""
    made = nets(recorded, which, step)
    objective = objective_of(recorded, method, made, lr=lr)
    engine, seen = engine_of(objective, lr)
    for j in range(4):
        shifts = (0.11 * j, 0.7 + 0.13 * j)[: objective.n_views]
        views = tuple(recorded.pictures(made.batch, made.side, shift) for shift in shifts)
        engine.batch(Batch(views, torch.arange(made.batch)), Clock(0, 0, 1, j, 4, 0, done=j))
    for ours, theirs in SEEN.items():
        if f"{at}{theirs}" in recorded.arrays:
            values = torch.tensor([step[ours] for step in seen], dtype=torch.float64)
            assert close(values, recorded[f"{at}{theirs}"], limit if "loss" in theirs else 0), theirs
    return objective


@pytest.mark.parametrize("warmth", ["T0.07", "T0.2"])
@pytest.mark.parametrize("case", ["st", "same", "uniform"])
def test_the_distillation_loss(recorded: Recorded, warmth: str, case: str) -> None:
    """The entropy of the teacher is its least value; its gradient is that of the divergence."""
    at, temperature = f"kd.{warmth}.{case}.", float(warmth[1:])
    t = recorded["kd.teacher"].double() * (case != "uniform")
    s = (recorded["kd.teacher"] if case == "same" else recorded["kd.student"]).double().requires_grad_()
    loss, entropy = soft_cross_entropy(s / temperature, t / temperature)
    loss.backward()
    assert s.grad is not None and close(loss.detach(), recorded[f"{at}loss"], 1e-6)
    assert close(entropy, recorded[f"{at}entropy"], 1e-6)
    assert (s.grad - recorded[f"{at}grad"]).abs().max() < 3e-8 + 1e-6 * recorded[f"{at}grad"].abs().max()
    if case == "same":
        assert close(loss.detach(), entropy, 1e-14)


@pytest.mark.parametrize("momentum", [".999", ".95"])
def test_logits_queue_and_key_encoder_of_two_calls(
    recorded: Recorded, momentum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an optimizer; the key encoder moves before its pass, and its batch norm follows its own batches."""
    made, logits = nets(recorded, "standin", 0), list[Tensor]()
    objective = objective_of(recorded, "contrastive", made, momentum=float(momentum))

    def seen(x: Tensor) -> Tensor:
        logits.append(x.detach())
        return info_nce(x)

    monkeypatch.setattr("s2bnn.objective.info_nce", seen)
    assert objective.keys is not None and objective.encoder_k is not None
    names = recorded.json("keys")["standin_moco_key_params"]
    for step in (1, 2):
        views = tuple(recorded.pictures(made.batch, 32, 0.7 * (2 * step - 2 + view)) for view in (0, 1))
        clock, batch = Clock(0, 0, 1, step, 4, 0), Batch(views, torch.arange(made.batch))
        objective.before_batch(clock)
        out = objective(batch, clock, Pass(), None)
        objective.after_batch(clock, [out.carry])
        at = f"builder.m{momentum}.step{step}."
        assert close(logits[-1], recorded[f"{at}logits"], 2e-6)
        assert close(norms(objective.encoder_k, names), recorded[f"{at}key_param_norms"], 1e-6)
        assert close(objective.keys.queue, recorded[f"{at}queue"], 2e-6)
        assert torch.equal(objective.keys.queue_ptr, recorded[f"{at}queue_ptr"])
    state = objective.state_dict()
    for key, value in recorded.under(f"builder.m{momentum}.after.").items():
        assert close(state[key], value, 2e-6), key


def test_the_students_embeddings_are_one_in_all_methods(recorded: Recorded) -> None:
    made = nets(recorded, "standin", 0)
    objective = objective_of(recorded, "distill", made)
    q = F.normalize(objective.encoder_q(recorded.pictures(made.batch, 32, 0.0)), dim=1).detach()
    assert close(q, recorded["builder.CD.step1.q"], 2e-6) and close(q, recorded["builder.D.step1.q"], 2e-6)
    assert not [key for key in objective.state_dict() if key.startswith(("keys.", "encoder_k."))]


def test_a_fresh_key_encoder_is_the_query_and_the_queue_is_of_unit_columns(recorded: Recorded) -> None:
    assert bool(recorded["builder.init.key_equals_query"]) and not bool(recorded["builder.init.key_requires_grad"])
    assert bool(recorded["builder.init.queue_columns_unit_norm"])
    keys, net = KeyQueue(8, 16, torch.Generator()), StandIn(4, 8, 8)
    objective = S2bnn(net, partial(optimizer, OPTIONS, "adam"), temperature=0.2, keys=keys)
    assert objective.encoder_k is not None
    copy, own = objective.encoder_k.state_dict(), net.state_dict()
    assert all(torch.equal(copy[key], own[key]) for key in own)
    assert not any(p.requires_grad for p in objective.encoder_k.parameters())
    assert torch.allclose(keys.queue.norm(dim=0), torch.ones(16))


def test_learning_rates(recorded: Recorded) -> None:
    """`--cos` is a line; steps by the variant's defaults."""
    rates = recorded.json("lr")
    chosen: dict[str, dict[str, Any]] = {
        "cos_lr3e-4_epochs200": {"cos": True},
        "schedule_120_160_lr3e-4_epochs200": {},
        "schedule_120_195_lr3e-4_epochs200": {"method": METHODS[0]},
    }
    for name, more in chosen.items():
        options: dict[str, Any] = {"method": METHODS[2], "step": 2, "schedule": (), "weight_decay": None} | more
        schedule = pretrain_rate(pretrain_options(**options))
        ours = [schedule(Clock(0, epoch, 200, 7, 9, 0)) for epoch in range(200)]
        assert ours == pytest.approx(rates[name], rel=1e-13, abs=0)
    schedule = rate(LinclsOptions(), "step", 0.1)
    ours = [schedule(Clock(0, epoch, 100, 7, 9, 0)) for epoch in range(100)]
    assert ours == pytest.approx(rates["lincls_lr0.1_schedule_60_80_epochs100"], rel=1e-13, abs=0)


def test_what_the_teacher_says_of_the_first_batch(recorded: Recorded) -> None:
    """A file of it, in MoCo's layout, is read elsewhere (test_teacher.py)."""
    made = nets(recorded, "standin", 0)
    t = F.normalize(made.teacher.double()(recorded.pictures(made.batch, made.side, 0.0)), dim=1)
    assert close(t, recorded["teacher.embedding"], 2e-6)
    assert close(soft_cross_entropy(t / 0.2, t / 0.2)[1], recorded["teacher.entropy_first_batch"], 1e-6)


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("lr", ["3e-4", "1e-2"])
def test_four_steps_of_a_real_valued_encoder(recorded: Recorded, method: str, lr: str) -> None:
    at = f"train.standin.lr{lr}.{method}."
    objective = trained(recorded, "standin", 0, method, at, float(lr), 1e-6)
    names = recorded.json("keys")["standin_query_params"]
    assert close(norms(objective.encoder_q, names), recorded[f"{at}query_param_norms"], 2e-5)
    after: Any = objective.encoder_q
    assert close(after.conv2.weight[:4], recorded[f"{at}after.conv2"], 1e-3 if lr == "1e-2" else 1e-4)
    if objective.keys is None:
        assert objective.encoder_k is None
        return
    assert objective.encoder_k is not None
    assert close(norms(objective.encoder_k, names), recorded[f"{at}key_param_norms"], 1e-6)
    queue = objective.keys.queue
    assert close(queue.norm(), recorded[f"{at}queue_norm"], 1e-6)
    assert close(queue.sum(), recorded[f"{at}queue_sum"], 1e-5)
    assert torch.equal(objective.keys.queue_ptr, recorded[f"{at}queue_ptr"])


@pytest.mark.parametrize("method", NAMES)
@pytest.mark.parametrize("step", [1, 2])
def test_four_steps_of_the_originals_blocks(recorded: Recorded, step: int, method: str) -> None:
    at, names = f"train.mini.step{step}.{method}.", recorded.json("keys")["mini_query_params"]
    objective = trained(recorded, "mini", step, method, at, 3e-4, 1e-6)
    own = dict(objective.encoder_q.named_parameters())
    kept = torch.tensor([name in own for name in names])
    theirs = recorded[f"{at}query_param_norms"] * kept
    assert close(norms(objective.encoder_q, names), theirs, 2e-5)
    after: Any = objective.encoder_q
    assert close(after.feature[2].binary_3x3.weight[:2], recorded[f"{at}after.b2_3x3"], 1e-4)


@pytest.mark.parametrize(
    ("step", "method"),
    [
        pytest.param(step, name, marks=pytest.mark.heavy if (step, name) in SHOWN else pytest.mark.slow)
        for step in (1, 2) for name in NAMES
    ],
)  # fmt: skip
def test_four_steps_of_reactnet_in_double_precision(recorded: Recorded, step: int, method: str) -> None:
    at = f"train.react64.step{step}.{method}."
    objective = trained(recorded, "react", step, method, at, 3e-4, 1e-10)
    names = recorded.json("keys")["moco_reactnet_key_params"]
    own = dict(objective.encoder_q.named_parameters())
    kept = torch.tensor([name in own for name in names])
    assert close(norms(objective.encoder_q, names), recorded[f"{at}query_param_norms"] * kept, 1e-10)
