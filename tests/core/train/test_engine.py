"""One batch: parts, scaler, clipping, labels, modes; and what `fit` refuses."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.train.engine import Engine, split
from lowbit.train.log import Meter
from lowbit.train.loop import Run, fit
from lowbit.train.process import check_precision, finish, make_accelerator, precision_here, start_trackers
from lowbit.train.protocol import Clock, Objective, Out, Pass, Stage
from lowbit.train.schedule import constant
from lowbit.train.supervised import Supervised


class Fixed:
    """Three batches of 6, 6 and 4 pictures."""

    global_batch, last_batch = 6, 4

    def __len__(self) -> int:
        return 3

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        for step in range(start, 3):
            n = 4 if step == 2 else 6
            generator = torch.Generator().manual_seed(100 * epoch + step)
            x = torch.randn(n, 5, generator=generator)
            yield Batch((x,), torch.arange(n), (x.sum(1) > 0).long())


class Two(Objective):
    """Two optimizers over two layers; the plan is given.

    Attributes:
        seen: what each forward was given. calls: hooks and forwards in their order, with their pass and part.
        gradients: before each step.
    """

    def __init__(self, plan: Sequence[Pass]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.plan = nn.Linear(5, 4), nn.Linear(4, 1), plan
        self.seen: list[Any] = []
        self.calls: list[str] = []
        self.gradients: list[list[Tensor | None]] = []

    def optimizers(self) -> dict[str, Optimizer]:
        return {"a": SGD(self.a.parameters(), lr=1, momentum=0.9), "b": SGD(self.b.parameters(), lr=1)}

    def passes(self, clock: Clock) -> Sequence[Pass]:
        return self.plan

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        self.seen.append((clock.micro, carry, batch.label is None, self.training))
        self.calls.append(f"forward {pas.variant} {clock.micro}")
        y = self.b(torch.relu(self.a(batch.views[0])))
        return Out((y - 1).square().mean() * (pas.variant or 1), {}, (carry or 0) + 1)

    def before_batch(self, clock: Clock) -> None:
        self.calls.append(f"before_batch {clock.step}")

    def before_step(self, clock: Clock, pas: Pass) -> None:
        self.calls.append(f"before_step {pas.variant}")
        self.gradients.append([None if p.grad is None else p.grad.clone() for p in self.parameters()])

    def after_step(self, clock: Clock, pas: Pass) -> None:
        self.calls.append(f"after_step {pas.variant}")

    def after_batch(self, clock: Clock, carries: Sequence[Any]) -> None:
        self.calls.append(f"after_batch {clock.step} {list(carries)}")


def stage_of(objective: Objective, epochs: int = 2) -> Stage:
    return Stage(objective, epochs, {"a": constant(0.1), "b": constant(0.05), "main": constant(0.1)})


def clock(step: int = 0) -> Clock:
    return Clock(0, 0, 1, step, 3, seed=0)


def test_split_keeps_pictures_and_shares() -> None:
    batch = Batch((torch.arange(7).float(), -torch.arange(7).float()), torch.arange(7), torch.arange(7) % 2, share=1.4)
    parts = split(batch, 3)
    assert [len(p.index) for p in parts] == [2, 2, 3]
    assert sum(p.share for p in parts) == pytest.approx(1.4)
    for field in ("index", "label"):
        assert torch.equal(torch.cat([getattr(p, field) for p in parts]), getattr(batch, field))
    assert torch.equal(torch.cat([p.views[1] for p in parts]), batch.views[1])
    assert split(batch, 1) == [batch]


@pytest.mark.parametrize("clip", [None, 0.1])
def test_scaled_gradients_give_the_same_steps(accelerator: Accelerator, clip: float | None) -> None:
    """The scale of fp16 is a power of two: two optimizers, unscaled once each, clipped together, one update."""
    plan = [Pass(step=("a", "b")), Pass(2.0, step=()), Pass(step=("b",))]
    nets = []
    for scaled in (False, True):
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
        objective = Two(plan)
        engine = Engine(stage_of(objective), Run(accelerator=accelerator, clip_grad=clip), Meter())
        engine.build()
        for step, batch in enumerate(Fixed().epoch(0)):
            engine.batch(batch, clock(step))
        nets.append(objective)
    for x, y in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-7)


def test_clipping_spans_the_optimizers_that_step(accelerator: Accelerator) -> None:
    objective = Two([Pass(1000.0, step=("a", "b"))])
    engine = Engine(stage_of(objective), Run(accelerator=accelerator, clip_grad=0.5), Meter())
    engine.build()
    engine.batch(next(Fixed().epoch(0)), clock())
    assert torch.stack([p.grad.norm() for p in objective.parameters() if p.grad is not None]).norm() == pytest.approx(
        0.5
    )


def test_carry_labels_and_modes(accelerator: Accelerator) -> None:
    """Pass-major, a carry per part, labels unread, training mode, gradients of an unstepped pass kept."""
    objective = Two([Pass(step=("a",)), Pass(step=("b",))])
    engine = Engine(stage_of(objective), Run(accelerator=accelerator, accumulate=2), Meter())
    engine.build()
    engine.batch(next(Fixed().epoch(0)), clock())
    assert objective.seen == [(0, None, True, True), (1, None, True, True), (0, 1, True, True), (1, 1, True, True)]


def test_a_carry_is_kept_no_longer_than_to_the_next_pass(accelerator: Accelerator) -> None:
    class Once(Two):
        """Its first pass alone carries something, of each part."""

        def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
            out = super().forward(batch, clock, pas, carry)
            return out._replace(carry=10 + clock.micro if pas.variant == 1 else None)

    objective = Once([Pass(variant, step=("a", "b")) for variant in (1, 2, 3)])
    engine = Engine(stage_of(objective), Run(accelerator=accelerator, accumulate=2), Meter())
    engine.build()
    engine.batch(next(Fixed().epoch(0)), clock())
    assert [carry for _, carry, *_ in objective.seen] == [None, None, 10, 11, None, None]
    assert objective.calls[-1] == "after_batch 0 [None, None]"


def test_the_order_of_calls(accelerator: Accelerator) -> None:
    """Hooks of the batch once, those of a step after all parts of its passes; none for a pass that does not step."""
    objective = Two([Pass(1, step=("a",)), Pass(2, step=()), Pass(3, step=("a", "b"))])
    engine = Engine(stage_of(objective), Run(accelerator=accelerator, accumulate=2), Meter())
    engine.build()
    for step, batch in enumerate(list(Fixed().epoch(0))[:2]):
        objective.calls.clear()
        engine.batch(batch, clock(step))
        assert objective.calls == [
            f"before_batch {step}",
            *("forward 1 0", "forward 1 1", "before_step 1", "after_step 1"),
            *("forward 2 0", "forward 2 1"),
            *("forward 3 0", "forward 3 1", "before_step 3", "after_step 3"),
            f"after_batch {step} [3, 3]",
        ]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_before_a_step_are_complete_unscaled_and_not_clipped(
    accelerator: Accelerator, scaled: bool, accumulate: int
) -> None:
    """Of the whole batch; what the hook adds is clipped and stepped."""
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    objective, batch = (
        Two([Pass(100.0, step=("a",)), Pass(step=()), Pass(3.0, step=("a", "b"))]),
        next(Fixed().epoch(0)),
    )
    engine = Engine(stage_of(objective), Run(accelerator=accelerator, accumulate=accumulate, clip_grad=0.5), Meter())
    engine.build()
    before, add = Two([]), objective.before_step

    def before_step(clock: Clock, pas: Pass) -> None:
        add(clock, pas)
        assert objective.a.weight.grad is not None
        if pas.variant == 100.0:
            objective.a.weight.grad.zero_()
            objective.a.bias.grad = torch.full((4,), 6.0)

    objective.before_step = before_step  # type: ignore[method-assign]
    engine.batch(batch, clock())
    loss = before(batch, clock(), Pass(100.0), None).loss
    for mine, whole in zip(
        objective.gradients[0], torch.autograd.grad(loss, list(before.a.parameters())), strict=False
    ):
        torch.testing.assert_close(mine, whole)  # b's are not stepped, so they stay scaled
    with torch.no_grad():
        before.a.bias -= 0.1 * torch.full((4,), 6.0 * 0.5 / 12)  # the norm of the four was 12
    losses = [before(batch, clock(), Pass(weight), None).loss for weight in (1.0, 3.0)]
    both = torch.autograd.grad(losses[0] + losses[1], list(before.parameters()))
    for mine, whole in zip(objective.gradients[1], both, strict=True):
        torch.testing.assert_close(mine, whole)


def test_a_plan_that_ends_without_a_step_is_an_error(accelerator: Accelerator) -> None:
    engine = Engine(stage_of(Two([Pass(step=())])), Run(accelerator=accelerator), Meter())
    engine.build()
    with pytest.raises(ValueError, match="gradients would be lost"):
        engine.batch(next(Fixed().epoch(0)), clock())


def test_a_missing_rate_is_an_error(accelerator: Accelerator) -> None:
    stage = stage_of(Two([]))._replace(lr={"a": constant(0.1)})
    with pytest.raises(ValueError, match="no learning rate for b"):
        Engine(stage, Run(accelerator=accelerator), Meter()).build()


def test_supervised_learns_and_reports(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    net = nn.Linear(5, 2)
    objective = Supervised(net, lambda student: SGD(student.parameters(), lr=1))
    result = fit([stage_of(objective, 20)], Fixed(), Run(accelerator=accelerator))
    assert result.finished and result.done == 60 and result.epochs == 20
    assert result.train["top1"] > 90 and result.train["loss"] < 0.4
    assert result.images_per_second > 0


def test_supervised_equals_a_plain_loop(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    mine, plain = nn.Linear(5, 2), nn.Linear(5, 2)
    plain.load_state_dict(mine.state_dict())
    fit(
        [stage_of(Supervised(mine, lambda net: SGD(net.parameters(), lr=1, momentum=0.9)))],
        Fixed(),
        Run(accelerator=accelerator),
    )
    optimizer = SGD(plain.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(2):
        for batch in Fixed().epoch(epoch):
            optimizer.zero_grad()
            nn.functional.cross_entropy(plain(batch.views[0]), batch.label).backward()  # type: ignore[arg-type]
            optimizer.step()
    assert torch.equal(mine.weight, plain.weight)


def test_compiling_is_in_place_and_only_what_is_named(
    accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, dynamic: compiled.append((self, dynamic)))
    net = nn.Linear(5, 2)
    run = Run(accelerator=accelerator, compile=True)
    Engine(stage_of(Supervised(net, lambda student: SGD(student.parameters(), lr=1))), run, Meter())
    assert compiled == [(net, False)]
    with pytest.raises(InputError, match="--compile"):
        Engine(stage_of(Two([])), run, Meter())


def test_refuses_what_cannot_be_split(accelerator: Accelerator) -> None:
    with pytest.raises(InputError, match="4 pictures for 1 processes x 5 parts"):
        fit([stage_of(Two([]))], Fixed(), Run(accelerator=accelerator, accumulate=5))


def test_a_loss_that_became_nan_ends_the_run(accelerator: Accelerator) -> None:
    with pytest.raises(InputError, match="became NaN"):
        fit([stage_of(Two([Pass(float("nan"), step=("a",))]))], Fixed(), Run(accelerator=accelerator))


def test_fp16_needs_a_gpu() -> None:
    with pytest.raises(InputError, match="fp8 is not known"):
        make_accelerator("fp8")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        make_accelerator("fp16", cpu=True)


def test_runs_of_one_program_have_their_own_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for wanted in ("bf16", "no", "bf16"):
        assert make_accelerator(wanted, cpu=True).mixed_precision == wanted
    AcceleratorState._reset_state()
    Accelerator(mixed_precision="bf16", cpu=True)  # the program's own, which keeps what it was given
    monkeypatch.setattr("lowbit.train.process._chosen_here", False)
    with pytest.raises(InputError, match=r"--mixed-precision no: an Accelerator of this program has bf16"):
        make_accelerator("no", cpu=True)
    assert precision_here() == make_accelerator("bf16", cpu=True).mixed_precision == "bf16"


def test_trackers(accelerator: Accelerator, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="give --output"):
        make_accelerator("no", ["tensorboard"])
    with pytest.raises(InputError, match="--tracker nonesuch"):
        make_accelerator("no", ["nonesuch"], tmp_path)
    check_precision(accelerator)


def test_tensorboard_gets_the_lines(tmp_path: Path) -> None:
    accelerator = make_accelerator("no", ["tensorboard"], tmp_path, cpu=True)
    start_trackers(accelerator, "toy", {"lr": 0.1, "schedule": [1, 2]})
    fit([stage_of(Two([Pass(step=("a", "b"))]))], Fixed(), Run(accelerator=accelerator, log_every=2))
    finish(accelerator)
    assert b"step/loss" in b"".join(p.read_bytes() for p in tmp_path.rglob("events*"))
