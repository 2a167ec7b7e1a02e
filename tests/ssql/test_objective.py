"""SSQL's objectives: which bits and passes make the loss, where gradients go, runs that are resumed or split."""

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.losses.cosine import cosine_loss
from lowbit.quant.bitwidths import activations, in_mode, weight_quantizers
from lowbit.train.protocol import Clock, Out, Pass
from ssql.objective import Drawing, SelfSupervised

ranks = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("ssl_ranks.py"))))
fake = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "fake_step.py")))
SSQL = ["SSQL_SimSiam", "SSQL_BYOL", "SSQL_MoCo", "SSQL_SimCLR", "RSSQL_SimSiam"]
ALL = ["SimSiam", "BYOL", "MoCo", "SimCLR", *SSQL]


@pytest.fixture(scope="module", autouse=True)
def split_runs(tmp_path_factory: pytest.TempPathFactory, processes: Any) -> tuple[Path, list[Any]]:
    """Runs on one process and on two, beside this module's other tests."""
    folder = tmp_path_factory.mktemp("ranks")
    return folder, [processes.start(split=str(folder), world=world) for world in (1, 2)]


def batch_of(n: int = 8) -> Batch:
    views = torch.randn(2, n, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return Batch((views[0], views[1]), torch.arange(n))


def clock_at(step: int, rank: int = 0, seed: int = 0) -> Clock:
    return Clock(0, 0, 1, step, 1000, seed=seed, rank=rank, done=step)


def step(objective: SelfSupervised, batch: Batch, clock: Clock) -> Out:
    """What precedes a batch, forward, backward and what follows it."""
    objective.before_batch(clock)
    out: Out = objective(batch, clock, Pass(), None)
    out.loss.backward()
    objective.after_batch(clock, [out.carry])
    return out


def watched(objective: SelfSupervised) -> list[tuple[str, Tensor]]:
    """Will hold (mode, output) of every pass through the encoder."""
    seen: list[tuple[str, Tensor]] = []
    quantizer = weight_quantizers(objective.encoder_q)[0]
    objective.encoder_q.register_forward_hook(lambda module, args, out: seen.append((quantizer.mode, out)))
    return seen


def pairs_of(objective: SelfSupervised, **which: int) -> list[tuple[int, int]]:
    drawn = [objective.draw_(clock_at(i, **which)) for i in range(60)]
    return [(int(bits["w_bits"]), int(bits["a_bits"])) for bits in drawn]


@pytest.mark.parametrize("kind", SSQL)
def test_bits_lie_in_their_ranges_change_and_agree(kind: str) -> None:
    objective = ranks.tiny(kind)
    pairs = [pairs_of(objective, rank=rank) for rank in (1, 0)]
    assert pairs[0] == pairs[1]
    ranges = objective.drawing.w_range, objective.drawing.a_range
    assert ranges == ((2, 9), (4, 9)), "the authors' ranges"
    assert {w for w, _ in pairs[0]} == set(range(2, 9))
    if kind == "RSSQL_SimSiam":
        assert all(w == a for w, a in pairs[0])
    else:
        assert {a for _, a in pairs[0]} == set(range(4, 9)) and len(set(pairs[0])) > 15, "independent of each other"
    w, a = pairs[1][-1]
    drawn_w = {int(q.w_bits) for q in weight_quantizers(objective.encoder_q) if q.pin is None}
    drawn_a = {int(q.a_bits) for q in activations(objective.encoder_q).values() if q.pin is None}
    assert (drawn_w, drawn_a) == ({w}, {a}), "one number for the whole net"
    assert {int(q.w_bits) for q in weight_quantizers(objective.encoder_q) if q.pin is not None} == {8}
    assert pairs[0] != pairs_of(objective, seed=1)


@pytest.mark.parametrize("kind", ALL)
def test_what_is_logged_and_what_is_trained(kind: str) -> None:
    objective = ranks.tiny(kind)
    out = step(objective, batch_of(), clock_at(0))
    names = {"z_std"} | ({"top1"} if kind.endswith("MoCo") else set())
    if "SSQL" in kind:
        names |= {"w_bits", "a_bits"}
    if kind.startswith("SSQL"):
        names |= {"float", "quantized"}
        parts = out.parts["float"] + out.parts["quantized"]
        assert out.loss.item() == pytest.approx(parts.item() / 2, abs=1e-6)
    assert set(out.parts) == names
    assert not any(value.requires_grad for value in out.parts.values())
    for name, parameter in objective.named_parameters():
        fixed = name.startswith("encoder_k.") or not parameter.requires_grad
        assert (parameter.grad is None) == fixed, name
    stepped = {p for group in objective.optimizers()["main"].param_groups for p in group["params"]}
    assert stepped == {p for p in objective.parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["SSQL_SimSiam", "RSSQL_SimSiam"])
def test_targets_get_no_gradient(kind: str) -> None:
    """The gradient is that of predictions against targets that are constants, of the right branch."""
    objective, batch, clock = ranks.tiny(kind), batch_of(), clock_at(0)
    seen = watched(objective)
    step(objective, batch, clock)
    assert [mode for mode, _ in seen] == ["observe"] * 2 + ["quantized"] * 2
    (z1, z2), (q1, q2) = (tuple(out for _, out in seen[i : i + 2]) for i in (0, 2))
    assert q1.requires_grad == (kind == "SSQL_SimSiam")
    assert not torch.equal(z1, q1), "the second branch is quantized"
    again = ranks.tiny(kind)
    again.draw_(clock)
    floats = again.floats(*batch.views)
    p = tuple(again.predictor(z) for z in floats)
    if kind == "RSSQL_SimSiam":
        loss = cosine_loss(p, (q1.detach(), q2.detach()))
    else:
        z = z1.detach(), z2.detach()
        loss = (
            cosine_loss(p, z) + cosine_loss(tuple(again.predictor(q) for q in again.quantized(*batch.views)), z)
        ) / 2
    loss.backward()
    for (name, a), b in zip(objective.named_parameters(), again.parameters(), strict=True):
        assert (a.grad is None and b.grad is None) or torch.allclose(a.grad, b.grad, atol=1e-7), name


def slow_nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    rows = F.normalize(torch.cat([first, second]), dim=1)
    n, losses = len(first), []
    for i in range(2 * n):
        e = [(rows[i] @ rows[j] / temperature).exp() for j in range(2 * n)]
        losses.append(-(e[(i + n) % (2 * n)] / sum(e[j] for j in range(2 * n) if j != i)).log())
    return torch.stack(losses).mean()


def test_ssql_on_simclr_is_the_specified_formula() -> None:
    """Half NT-Xent(p1, p2), half the mean over cross-view pairs of NT-Xent(q_v, stopped p_u); also its gradient."""
    objective, batch = ranks.tiny("SSQL_SimCLR"), batch_of(5)
    seen = watched(objective)
    out = objective(batch, clock_at(0), Pass(), None)
    p1, p2, q1, q2 = (output for _, output in seen)
    for output in (p1, p2, q1, q2):
        output.retain_grad()
    out.loss.backward(retain_graph=True)
    leaves = [output.detach().clone().requires_grad_() for output in (p1, p2, q1, q2)]
    a, b, c, d = leaves
    quantized = (slow_nt_xent(c, b.detach(), 0.5) + slow_nt_xent(d, a.detach(), 0.5)) / 2
    slow = (slow_nt_xent(a, b, 0.5) + quantized) / 2
    slow.backward()
    assert out.loss.item() == pytest.approx(slow.item(), abs=1e-6)
    for output, leaf in zip((p1, p2, q1, q2), leaves, strict=True):
        assert output.grad is not None and torch.allclose(output.grad, leaf.grad, atol=1e-6)


def test_the_float_forward_is_that_of_the_unwrapped_encoder() -> None:
    wrapped, plain, x = ranks.tiny("SSQL_SimSiam").encoder_q, ranks.tiny("SimSiam").encoder_q, batch_of().views[0]
    plain.load_state_dict({k: v for k, v in wrapped.state_dict().items() if ".observer." not in k})
    outputs = []
    for net in (wrapped, plain):
        y = net(x)
        outputs.append((y, torch.autograd.grad(y[:, 0].sum(), net.conv1.weight)[0], net.bn1.running_var))
    for a, b in zip(*outputs, strict=True):
        assert torch.equal(a, b)
    with in_mode(wrapped, "observe"):
        assert torch.equal(wrapped(x), plain(x))


@pytest.mark.parametrize("tensors", fake.KINDS)
@pytest.mark.parametrize("kind", ALL)
def test_a_step_reads_no_value_back_and_mixes_no_devices(kind: str, tensors: str) -> None:
    fake.run_steps(tensors, ranks.tiny(kind), batch_of(), clip_grad=1.0)


@pytest.mark.parametrize(("observer", "tensors"), [("ema", "meta"), ("mse", "fake cuda"), ("gaussian", "fake cpu")])
def test_nor_does_an_observer(observer: str, tensors: str) -> None:
    drawing = Drawing(shared_norm=False)
    fake.run_steps(tensors, ranks.tiny("SSQL_SimSiam", drawing, observer=observer), batch_of(4))


@pytest.mark.parametrize("shared", [True, False])
def test_running_statistics_of_float_and_quantized_passes(shared: bool) -> None:
    objective, batch = ranks.tiny("SSQL_SimSiam", Drawing((2, 3), (4, 5), shared_norm=shared)), batch_of()
    norm = objective.encoder_q.layer1[0].bn2  # behind quantized activations
    objective.floats(*batch.views)
    before = norm.running_mean.clone()
    objective.draw_(clock_at(0))
    objective.quantized(*batch.views)
    assert torch.equal(norm.running_mean, before) == (not shared)
    assert norm.momentum == 0.1


@pytest.mark.parametrize("kind", ["BYOL", "SSQL_MoCo"])
def test_the_momentum_encoder_moves_once_a_batch(kind: str) -> None:
    objective = ranks.tiny(kind)
    with torch.no_grad():
        objective.encoder_q.conv1.weight.add_(1.0)
    start = objective.encoder_k.conv1.weight.clone()
    moved = start * 0.9 + objective.encoder_q.conv1.weight * 0.1
    objective.before_batch(clock_at(0))
    for micro in (0, 1):
        out = objective(batch_of(), clock_at(0)._replace(micro=micro), Pass(), None)
        assert torch.allclose(objective.encoder_k.conv1.weight, moved)
    objective.after_batch(clock_at(0), [out.carry])
    assert torch.allclose(objective.encoder_k.conv1.weight, moved)


@pytest.mark.parametrize(("kind", "observer"), [("SSQL_BYOL", "mse"), ("SSQL_MoCo", "minmax")])
def test_a_run_resumed_inside_an_epoch_equals_an_unbroken_one(kind: str, observer: str, tmp_path: Path) -> None:
    unbroken, first, second = (ranks.tiny(kind, observer=observer) for _ in range(3))
    whole = ranks.short_run(unbroken, tmp_path / "a", torch.float32)
    drawn = ranks.short_run(first, tmp_path / "b", torch.float32, max_steps=4)
    drawn += ranks.short_run(second, tmp_path / "b", torch.float32, resume=True)
    assert drawn == whole and len(whole) == 6 and len(set(whole)) > 1
    states: list[dict[str, Any]] = [torch.load(tmp_path / f / "checkpoint.pth.tar") for f in ("a", "b")]
    for part in ("state_dict", "optimizer"):
        a, b = (torch.utils._pytree.tree_leaves(state[part]) for state in states)
        assert len(a) == len(b)
        assert all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))
    assert not torch.equal(unbroken.encoder_q.conv1.weight, ranks.tiny(kind).encoder_q.conv1.weight)


@pytest.mark.parametrize("kind", ranks.SPLIT)
def test_two_processes_draw_the_same_bits_and_equal_one(kind: str, split_runs: tuple[Path, list[Any]]) -> None:
    """In float64, on unequal parts of each batch; with the authors' grid the largest weights lie at near ties."""
    folder, (alone, together) = split_runs
    alone.wait(0), together.wait(0, 0)
    (one, drawn), (rank0, drawn0), (rank1, drawn1) = (
        torch.load(folder / f"{kind}{n}.pt") for n in ("1.0", "2.0", "2.1")
    )
    assert drawn == drawn0 == drawn1 and len(drawn) == 6
    for name, value in one.items():
        assert torch.equal(rank0[name], rank1[name]), name
        assert torch.allclose(rank0[name].double(), value.double(), rtol=0, atol=1e-10), name
