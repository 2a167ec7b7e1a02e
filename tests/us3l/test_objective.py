"""US3L's objective: every method beside a step written by hand, unused channels, ranks, parts, resumed runs."""

import copy
import math
import runpy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.losses.cosine import cosine_loss
from lowbit.slim.layers import SlimLinear, at_width, set_width_
from lowbit.train.engine import Engine
from lowbit.train.log import Meter
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Out, Pass, Stage
from lowbit.train.run import Run
from lowbit.train.schedule import constant
from us3l.objective import Plan, SubNet, UniversallySlimmable
from us3l.sampling import Sampling

HERE = Path(__file__)
runs = SimpleNamespace(**runpy.run_path(str(HERE.with_name("tiny_runs.py"))))
fake = SimpleNamespace(**runpy.run_path(str(HERE.parents[1] / "fake_step.py")))
ADDED = ("encoder_k.", "proj_conv.")


@pytest.fixture(scope="module", autouse=True)
def split_runs(tmp_path_factory: pytest.TempPathFactory, processes: Any) -> tuple[Path, list[Any]]:
    """Runs on one process and on two, beside this module's other tests."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, [processes.start(split=str(folder), world=world) for world in (1, 2)]


def batch_of(n: int = 8, dtype: torch.dtype = torch.float64, seed: int = 1) -> Batch:
    views = torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return Batch((views[0], views[1]), torch.arange(n))


def clock_at(step: int, epoch: int = 0, epochs: int = 1) -> Clock:
    return Clock(0, epoch, epochs, step, 1000, seed=0, done=step)


def train(objective: UniversallySlimmable, steps: int, accumulate: int = 1, **clock: int) -> list[Out]:
    """Batches through the loop's engine; returns what the forwards returned."""
    engine = Engine(
        Stage(objective, 1, {"main": constant(0.1)}),
        Run(accelerator=make_accelerator("no", cpu=True), accumulate=accumulate),
        Meter(),
    )
    engine.build()
    outs: list[Out] = []
    hook = objective.register_forward_hook(lambda module, args, out: outs.append(out))
    for step in range(steps):
        engine.batch(batch_of(seed=step), clock_at(step, **clock))
    hook.remove()
    return outs


def slow_cosine(p: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    terms = [a @ b / a.norm() / b.norm() for x, y in ((p[0], t[1]), (p[1], t[0])) for a, b in zip(x, y, strict=True)]
    return -torch.stack(terms).mean()


def slow_nt_xent(first: Tensor, second: Tensor) -> Tensor:
    rows, n = [row / row.norm() for row in (*first, *second)], len(first)
    losses = []
    for i in range(2 * n):
        e = [(rows[i] @ rows[j] / 0.5).exp() for j in range(2 * n)]
        losses.append(-(e[(i + n) % (2 * n)] / sum(e[j] for j in range(2 * n) if j != i)).log())
    return torch.stack(losses).mean()


def slow_moco_v3(p: Sequence[Tensor], t: Sequence[Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for queries, keys in ((p[0], t[1]), (p[1], t[0])):
        for i, q in enumerate(queries):
            e = [(q @ k / q.norm() / k.norm() / 0.5).exp() for k in keys]
            total = total - 2 * 0.5 * (e[i] / sum(e)).log() / len(queries)
    return total


def slow_moco(q: Tensor, k: Tensor, queue: Tensor) -> Tensor:
    q, k = (torch.stack([row / row.norm() for row in x]) for x in (q, k))
    losses = []
    for a, b in zip(q, k, strict=True):
        e = [(a @ b / 0.5).exp(), *((a @ column / 0.5).exp() for column in queue.T)]
        losses.append(-(e[0] / sum(e)).log())
    return torch.stack(losses).mean()


BASE: dict[str, Callable[[Any, Any], Tensor]] = {
    "SimCLR": lambda p, t: slow_nt_xent(*p),
    "SimCLR_Momentum": lambda p, t: (slow_nt_xent(p[0], t[1]) + slow_nt_xent(p[1], t[0])) / 2,
    "MoCo_v3": slow_moco_v3,
}


def by_hand(method: str, objective: UniversallySlimmable, steps: int) -> list[float]:
    """The spec's iteration, width by width: losses of all passes. Trains the objective's own parts."""
    q, optimizer = objective.encoder_q, torch.optim.SGD(objective.parameters(), lr=0.1, momentum=0.9)
    k: Any = getattr(objective, "encoder_k", None)
    heads: dict[str, Any] = {name: getattr(objective, name, None) for name in ("predictor", "predictor_new")}
    none = nn.Identity()
    if method.startswith("SimCLR"):
        heads = {"max": none, "sub": heads["predictor"]}
    elif method == "MoCo":
        heads = {"max": none, "sub": none}
    else:
        heads = {"max": heads["predictor"], "sub": heads["predictor_new"] or heads["predictor"]}
    losses = []
    for step in range(steps):
        x1, x2 = batch_of(seed=step).views
        if k is not None:
            with torch.no_grad():
                for a, b in zip(k.parameters(), q.parameters(), strict=True):
                    a.copy_(0.9 * a + 0.1 * b)
        target: Any = None
        for width in (1.0, 0.5, 0.25):
            set_width_(q, width)
            f = [q(x1)] if method == "MoCo" else [q(x1), q(x2)]
            if width == 1.0 and method == "MoCo":
                target = [k(x2).detach()]
            elif width == 1.0:
                target = [x.detach() for x in f] if k is None else [k(x1).detach(), k(x2).detach()]
            p = [heads["max" if width == 1.0 else "sub"](x) for x in f]
            if method == "MoCo":
                assert objective.keys is not None
                loss = slow_moco(p[0], target[0], objective.keys.queue.clone())
            elif width == 1.0:
                loss = BASE.get(method, slow_cosine)(p, target)
            else:
                loss = (slow_moco_v3 if method == "MoCo_v3" else slow_cosine)(p, target)
            loss = loss if width == 1.0 else 0.7 * loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if objective.keys is not None:
            start, n = 8 * step, len(x1)
            objective.keys.queue[:, start : start + n] = (target[0] / target[0].norm(dim=1, keepdim=True)).T
    set_width_(q, 1.0)
    return losses


@pytest.mark.parametrize("method", runs.TYPES)
def test_every_method_is_its_formula_step_by_step(method: str) -> None:
    objective = runs.tiny(method).double()
    other = copy.deepcopy(objective)
    other.keys = copy.deepcopy(objective.keys)
    expected = by_hand(method, other, 2)
    outs = train(objective, 2)
    assert [out.loss.item() for out in outs] == pytest.approx(expected, abs=1e-11)
    theirs = other.state_dict()
    for name, value in objective.state_dict().items():
        if name != "keys.queue_ptr":
            assert torch.allclose(value, theirs[name], rtol=0, atol=1e-11), name
    assert expected[3] != pytest.approx(expected[0], abs=1e-4), "it learns"


def test_what_is_logged_and_carried() -> None:
    outs = train(runs.tiny("BYOL").double(), 1)
    assert [set(out.parts) for out in outs] == [
        {"loss_1", "z_std"},
        {"loss_0.5", "z_std_0.5"},
        {"loss_0.25", "z_std_0.25"},
    ]
    assert all(out.carry[0][0] is outs[0].carry[0][0] for out in outs), "every pass returns the widest one's targets"
    assert not any(value.requires_grad for out in outs for value in (*out.parts.values(), *out.carry[0]))
    (alone,) = train(runs.tiny("BYOL", sampling=Sampling(fixed=(0.5,))).double(), 1)
    assert set(alone.parts) == {"z_std"}


@pytest.mark.parametrize("method", ["BYOL", "SimSiam"])
def test_feature_maps_of_narrow_passes_follow_the_targets(method: str) -> None:
    """A loss on top of the one without it, of the maps of the encoder that gives the targets."""
    with_maps, plain = (runs.tiny(method, features=features).double() for features in (True, False))
    batch, clock = batch_of(), clock_at(0)
    wide, narrow = SubNet(1.0, "max", True, True, False), SubNet(0.5, "min", False, False, True)
    losses, carries = [], []
    for objective in (with_maps, plain):
        carry = objective(batch, clock, Pass(wide), None).carry
        out = objective(batch, clock, Pass(narrow), carry)
        losses.append(out.loss)
        carries.append(carry)
    maps: dict[str, list[Tensor]] = {"layer1.0.bn2": [], "layer2.0": []}
    nets: list[Any] = [with_maps.encoder_q, getattr(with_maps, "encoder_k", with_maps.encoder_q)]
    added = 0.0
    for name in maps:
        pooled = []
        for net, width in zip(nets, (0.5, 1.0), strict=True):
            seen: list[Tensor] = []
            hook = net.get_submodule(name).register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
            with at_width(net, width):
                net(batch.views[0]), net(batch.views[1])
            hook.remove()
            if width == 0.5:
                weight = getattr(with_maps.proj_conv, name.replace(".", "_")).weight[:, : seen[0].shape[1], 0, 0]
                seen = [torch.einsum("oi,bihw->bohw", weight, x) for x in seen]
            pooled.append(tuple(x.sum((2, 3)) for x in seen))
        added += 0.3 * cosine_loss(*pooled).item() / 2
    assert losses[0].item() == pytest.approx(losses[1].item() + added, abs=1e-12)
    losses[0].backward()
    assert all(p.grad is not None for p in with_maps.proj_conv.parameters())
    assert not any(x.requires_grad for pair in carries[0][1].values() for x in pair)


def test_momentum_and_decay_move_unused_channels() -> None:
    """Two steps of four outputs by hand: all at width 1, then two of them; 2 lambda p is added for all four."""
    layer = SlimLinear(nn.Linear(16, 2, bias=False), (True, False)).double()
    start = torch.arange(1.0, 33.0, dtype=torch.float64).view(2, 16) / 10
    layer.weight.data.copy_(start)
    plan = Plan(
        Sampling(fixed=(1.0, 0.5)), lambda p, t, _: p[0].sum() / 8, lambda p, t, _: p[0].sum() / 8, decay=runs.decay()
    )
    objective = UniversallySlimmable(layer, plan, runs.sgd, heads={})
    engine = Engine(
        Stage(objective, 1, {"main": constant(0.1)}), Run(accelerator=make_accelerator("no", cpu=True)), Meter()
    )
    engine.build()
    x = torch.ones(8, 16, dtype=torch.float64)

    def narrow(module: Any, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0][:, : module.active_in],)

    layer.register_forward_pre_hook(narrow)
    engine.batch(Batch((x, x), torch.arange(8)), clock_at(0))
    w, velocity = start.clone(), torch.zeros_like(start)
    for used in (16, 8):
        gradient = 2 * 0.02 * w  # a matrix has the flat lambda
        gradient[:, :used] += 1.0
        velocity = 0.9 * velocity + gradient
        w = w - 0.1 * velocity
    assert torch.allclose(layer.weight, w, rtol=0, atol=1e-15)
    left = start[:, 8:]
    v1 = 0.04 * left + 1.0
    after = left - 0.1 * v1
    assert torch.allclose(layer.weight[:, 8:], after - 0.1 * (0.9 * v1 + 0.04 * after)), "the unused half"


def test_heads_that_a_pass_does_not_use_are_decayed_unless_it_is_at_full_width() -> None:
    objective = runs.tiny("BYOL", decay=runs.decay()).double()
    seen: list[tuple[Any, ...]] = []
    weights = [getattr(objective, name)[0].weight for name in ("predictor", "predictor_new")]
    optimizer = runs.sgd(objective)

    def step(self: Any, *args: Any) -> None:
        seen.append(tuple(None if w.grad is None else torch.equal(w.grad, 2 * 0.02 * w) for w in weights))

    optimizer.register_step_pre_hook(step)
    objective._optimize = lambda module: optimizer
    train(objective, 1)
    assert seen == [(False, None), (True, False), (True, False)]


def test_decay_in_the_step_is_the_gradient_of_the_term() -> None:
    plain, decayed = (
        runs.tiny("BYOL", sampling=Sampling(fixed=(0.5,)), decay=decay).double() for decay in (None, runs.decay())
    )
    clock = clock_at(0, 3, 4)
    term, lambdas = torch.zeros((), dtype=torch.float64), runs.decay().lambdas(3, 4)
    for name, p in plain.named_parameters():
        if not name.startswith("encoder_k."):
            size = len(p) // 4
            for i, factor in enumerate(lambdas if p.dim() in (1, 4) else (0.02,) * 4):
                term = term + factor * p[i * size : (i + 1) * size if i < 3 else len(p)].square().sum()
    plain.before_batch(clock)
    (plain(batch_of(seed=0), clock, plain.passes(clock)[0], None).loss + term).backward()
    train(decayed, 1, epoch=3, epochs=4)
    for (name, a), b in zip(plain.named_parameters(), decayed.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None) == name.startswith("encoder_k."), name
        assert a.grad is None or torch.allclose(b.grad, a.grad, rtol=1e-6, atol=1e-12), name


def test_one_step_per_batch_adds_the_gradients_of_all_widths() -> None:
    single, joint = (runs.tiny("BYOL", step_per_batch=per_batch).double() for per_batch in (False, True))
    clock, total = clock_at(0), {}
    single.before_batch(clock)
    carry = None
    for pas in single.passes(clock):
        out = single(batch_of(seed=0), clock, pas, carry)
        carry = out.carry
        out.loss.backward()
    total = {name: p.grad for name, p in single.named_parameters()}
    assert [pas.step for pas in joint.passes(clock)] == [(), (), ("main",)]
    train(joint, 1)
    for name, p in joint.named_parameters():
        assert (p.grad is None) == (total[name] is None), name
        assert p.grad is None or torch.allclose(p.grad, total[name], rtol=0, atol=1e-12), name


@pytest.mark.parametrize(("per_pass", "moves"), [(False, 1), (True, 3)])
def test_when_the_copy_moves(per_pass: bool, moves: int) -> None:
    """Once per batch before its first pass, or before each pass; always by what the encoder is then."""
    objective = runs.tiny("SimCLR_Momentum", {"MOMENTUM_UPDATE": per_pass}, moves_per_pass=per_pass).double()
    assert objective.plan.heads == (("", "") if per_pass else ("", "predictor"))
    weight, copied = objective.encoder_q.conv1.weight, objective.encoder_k.conv1.weight
    with torch.no_grad():
        weight.add_(1.0)
    expected, seen = copied.detach().clone(), []

    def before(module: Any, args: Any) -> None:
        nonlocal expected
        if len(seen) < moves:
            expected = 0.9 * expected + 0.1 * weight.detach()
        seen.append(torch.allclose(copied, expected, rtol=0, atol=1e-14))

    objective.register_forward_pre_hook(before)
    train(objective, 1)
    assert seen == [True] * 3 and torch.allclose(copied, expected)
    assert objective.encoder_k.training and not copied.requires_grad


def test_targets_are_the_copys_at_full_width_or_at_each_width_without_distillation() -> None:
    for distillation, widths in ((True, [1.0]), (False, [1.0, 0.5, 0.25])):
        objective = runs.tiny("BYOL", {"DISTILL": distillation}, **({} if distillation else {"distillation": None}))
        seen: list[float] = []
        heads: list[str] = []
        objective.encoder_k.conv1.register_forward_hook(lambda m, a, out, seen=seen: seen.append(m.width[1]))
        for head in ("predictor", "predictor_new"):
            objective.get_submodule(head).register_forward_hook(lambda *_, head=head, heads=heads: heads.append(head))
        outs = train(objective.double(), 1)
        assert seen == [width for width in widths for _ in range(2)]
        assert heads == ["predictor"] * 2 + ["predictor_new"] * 4, "narrower passes have their own in either case"
        assert distillation or [out.carry[0][0] is outs[0].carry[0][0] for out in outs] == [True, False, False]
    alone = runs.tiny("BYOL", sampling=Sampling(fixed=(0.25,))).double()
    seen = []
    alone.encoder_k.conv1.register_forward_hook(lambda m, a, out: seen.append(m.width[1]))
    train(alone, 1)
    assert seen == [1.0, 1.0], "one width: its target, too, is the whole copy's"


def test_widths_agree_on_ranks_and_change() -> None:
    plan = runs.tiny("BYOL", sampling=Sampling()).plan
    drawn = [
        [pas.variant.width for pas in plan.passes(clock_at(step)._replace(rank=rank))]
        for rank in (0, 1)
        for step in range(20)
    ]
    assert drawn[:20] == drawn[20:] and len({row[1] for row in drawn}) == 20
    assert all(row[0] == 1.0 and row[2] == 0.25 and 0.25 <= row[1] <= 1.0 for row in drawn)


def test_accumulated_parts_equal_one() -> None:
    whole, parts = runs.without_norm(), runs.without_norm()
    train(whole, 27)
    train(parts, 27, accumulate=2)
    theirs = parts.state_dict()
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, theirs[name], rtol=0, atol=1e-9), name
    assert not torch.equal(whole.encoder_q[0].weight, runs.without_norm().encoder_q[0].weight)


SOME = [(method, "fake cuda") for method in ("SimCLR", "BYOL", "MoCo", "MoCo_v3")]
SOME += [("BYOL", "meta"), ("MoCo", "meta"), ("MoCo", "fake cpu")]


@pytest.mark.parametrize(("method", "tensors"), SOME)
def test_a_step_reads_no_value_back_and_mixes_no_devices(method: str, tensors: str) -> None:
    objective = runs.tiny(method, features=method == "BYOL", decay=runs.decay(), sampling=Sampling())
    fake.run_steps(tensors, objective, batch_of(dtype=torch.float32), clip_grad=1.0)


def test_a_run_resumed_inside_an_epoch_equals_an_unbroken_one(tmp_path: Path) -> None:
    unbroken, first, second = (
        runs.tiny("BYOL", sampling=Sampling(schedule="A"), decay=runs.decay()).double() for _ in range(3)
    )
    whole = runs.short_run(unbroken, tmp_path / "a")
    drawn = runs.short_run(first, tmp_path / "b", max_steps=4)
    drawn += runs.short_run(second, tmp_path / "b", resume=True)
    assert drawn == whole and len(whole) == 3 + 9 and whole[:4] == [1.0] * 4 and math.isclose(min(whole), 0.5)
    states: list[dict[str, Any]] = [torch.load(tmp_path / f / "checkpoint.pth.tar") for f in ("a", "b")]
    for part in ("state_dict", "optimizer"):
        a, b = (torch.utils._pytree.tree_leaves(state[part]) for state in states)
        assert len(a) == len(b)
        assert all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", runs.SPLIT)
def test_two_processes_with_group_regularization_equal_one(name: str, split_runs: tuple[Path, list[Any]]) -> None:
    """BYOL through all four stages, on unequal parts of each batch, batch norm over both; the original stops here."""
    folder, (alone, together) = split_runs
    alone.wait(0), together.wait(0, 0)
    (one, widths), (rank0, widths0), (rank1, widths1) = (
        torch.load(folder / f"{name}{n}.pt") for n in ("1.0", "2.0", "2.1")
    )
    assert widths == widths0 == widths1 and len(widths) == 3 + 9 * (3 if name == "BYOL" else 1)
    for key, value in one.items():
        assert torch.equal(rank0[key], rank1[key]), key
        assert torch.allclose(rank0[key].double(), value.double(), rtol=0, atol=1e-9), key
