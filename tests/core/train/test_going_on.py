"""From where a run goes on, what of a checkpoint it does not believe, other numbers of epochs, and probes that fail."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.optim import SGD, Optimizer

from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.metrics import read_metrics
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result, Run, fit
from lowbit.train.optim import make_optimizer
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import constant, cosine
from lowbit.train.supervised import Supervised

State = dict[str, Any]
STEPS = 3  # an epoch


class Fixed:
    global_batch, last_batch = 6, 6

    def __len__(self) -> int:
        return STEPS

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        for step in range(start, STEPS):
            x = torch.randn(6, 5, generator=torch.Generator().manual_seed(100 * epoch + step))
            yield Batch((x,), torch.arange(6), (x.sum(1) > 0).long())


class Ending(Supervised):
    """Its stage's end changes the net."""

    @torch.no_grad()
    def end_stage(self, clock: Clock, batches: Callable[[], Iterable[Batch]]) -> None:
        self.student.weight.round_(decimals=3)  # type: ignore[operator, union-attr]


def sgd(net: nn.Module, **options: Any) -> Optimizer:
    return SGD(net.parameters(), lr=1, **{"momentum": 0.9, **options})


class Trained:
    """Runs into one folder, and what they leave."""

    def __init__(self, accelerator: Accelerator, folder: Path) -> None:
        self.accelerator, self.folder = accelerator, folder

    def __call__(
        self,
        *epochs: int,
        kind: type[Supervised] = Supervised,
        make: Callable[..., Optimizer] = sgd,
        rate: Callable[..., Any] = constant,
        resume: State | None = None,
        **settings: Any,
    ) -> Result:
        torch.manual_seed(0)
        self.net = nn.Linear(5, 2)
        stages = [Stage(kind(self.net, make), n, {"main": rate(0.1)}) for n in epochs]
        header = {"format": 1, "package": "t", "arch": "a"}
        with RunFolder.open(self.folder, {}, resume=resume is not None) as folder:
            run = Run(
                accelerator=self.accelerator, log_every=2, folder=folder, header=header, resume=resume, **settings
            )
            return fit(stages, Fixed(), run)

    @property
    def state(self) -> State:
        return read_checkpoint(self.folder / "checkpoint.pth.tar")

    @property
    def events(self) -> list[str]:
        return [f"{line['event']} {line['step']}" for line in read_metrics(self.folder / "metrics.jsonl")]


@pytest.fixture
def trained(accelerator: Accelerator, tmp_path: Path) -> Trained:
    return Trained(accelerator, tmp_path / "run")


def unbroken(trained: Trained, *epochs: int, **settings: Any) -> Trained:
    other = Trained(trained.accelerator, trained.folder.with_name("unbroken"))
    other(*epochs, **settings)
    return other


def moved(**position: int) -> Callable[[State], None]:
    return lambda state: state["position"].update(position)


def moved_back_alone(state: State) -> None:
    """Position and `done` agree with each other, and not with the checkpoint's other numbers."""
    state["position"].update(stage=0, epoch=0, step=2, done=2)


def option(**values: Any) -> Callable[[State], None]:
    return lambda state: state["optimizer"]["main"]["param_groups"][0].update(values)


def twice(state: State) -> None:
    state["state_dict"] |= {name.replace("student.", "module."): t for name, t in state["state_dict"].items()}


def entry(**values: Any) -> Callable[[State], None]:
    return lambda state: state.update(values)


def fact(**values: Any) -> Callable[[State], None]:
    return lambda state: state["run"].update(values)


def one_step(state: State) -> None:
    """Counted by a number in one parameter, by nothing in the others."""
    next(iter(state["optimizer"]["main"]["state"].values()))["step"] = 1


def uneven_meter(state: State) -> None:
    state["ranks"][0]["meter"]["recent"]["loss"] = [torch.zeros(3), [1.0]]


def meter(kind: str, value: object, name: Any = "loss") -> Callable[[State], None]:
    return lambda state: state["ranks"][0]["meter"][kind].update({name: value})


def moments(value: object) -> Callable[[State], None]:
    """The first parameter's momentum replaced; ... takes its state out."""

    def change(state: State) -> None:
        first = next(iter(state["optimizer"]["main"]["state"].values()))
        first.update(momentum_buffer=value) if value is not ... else first.clear()

    return change


def nan_moment(state: State) -> None:
    next(iter(state["optimizer"]["main"]["state"].values()))["momentum_buffer"].fill_(torch.nan)


def left_out(state: State) -> None:
    state["optimizer"]["main"]["state"].popitem()


def reordered(state: State) -> None:
    state["optimizer"]["main"]["param_groups"][0]["params"].reverse()


DAMAGES: dict[str, tuple[Callable[[State], object], str]] = {
    "done of 10^9": (moved(done=10**9), r"stands at \(0, 1, 1, 1000000000\).*which is beyond .* or contradicts itself"),
    "moved back": (moved(epoch=0), "contradicts itself"),
    "moved back, done too": (moved_back_alone, r"\(0, 0, 2, 2\) \(step 4, epoch 1\)"),
    "moved on": (moved(step=2, done=5), "contradicts itself"),
    "a negative step": (moved(step=-1), "contradicts itself"),
    "true as a step": (moved(step=True), "contradicts itself"),
    "a finished run's stage": (moved(stage=1), "contradicts itself"),
    "no such stage": (moved(stage=10**9), "beyond"),
    "more than an epoch's steps": (moved(epoch=0, step=4), "beyond"),
    "tensors as numbers": (entry(step=torch.zeros(2), epoch=torch.zeros(2)), "contradicts itself"),
    "weight decay": (option(weight_decay=0.5), r"optimizer main has weight_decay 0\.5, this run's 0"),
    "momentum": (option(momentum=0.0), r"optimizer main has momentum 0\.0, this run's 0\.9"),
    "nesterov": (option(nesterov=True), "optimizer main has nesterov True, this run's False"),
    "maximize": (option(maximize=True), "optimizer main has maximize True"),
    "dampening": (option(dampening=0.1), "dampening"),
    "a tensor as decay": (option(weight_decay=torch.zeros(2)), "weight_decay"),
    "text as rate": (option(lr="fast"), "its lr are no numbers"),
    "a tensor as rate": (option(lr=torch.ones(3)), "its lr are no numbers"),
    "tensors twice": (twice, "some tensors are there twice, with and without a prefix"),
    "best without its figure": (entry(best={"step": 3, "epoch": 0}), "damaged or of another run"),
    "best as text": (entry(best="top1"), "damaged or of another run"),
    "negative lines": (entry(lines=-1), "damaged or of another run"),
    "endless seconds": (entry(seconds=float("inf")), "damaged or of another run"),
    "no momentum": (moments(None), "its momentum is not of its parameter's type"),
    "momentum of whole numbers": (moments([1, 2]), "its momentum is not of its parameter's type"),
    "momentum of half the precision": (moments(torch.zeros(1, dtype=torch.float16)), "its momentum is not of its"),
    "NaN as momentum": (nan_moment, "its momentum is not of its parameter's type and shape, or not finite"),
    "a parameter's state left out": (left_out, "some parameters have other state than others"),
    "parameters in another order": (reordered, "its parameters have other numbers"),
    "the state of one parameter": (moments(...), "some parameters have other state than others"),
    "a meter's name": (meter("recent", [torch.zeros(1), [1.0]], (1, 2)), "damaged or of another run"),
    "a mean's name": (meter("epoch", [1.0, 1.0], 5), "damaged or of another run"),
    "a meter in 8 bits": (meter("recent", [torch.zeros(1).to(torch.float8_e5m2), [1.0]]), "damaged or of another run"),
    "a figure's name": (entry(last={"train": {1: 2.0}, "eval": {}}), "damaged or of another run"),
    "more figures": (entry(last={"train": {}, "eval": {}, 7: "text"}), "damaged or of another run"),
    "a meter's weights": (uneven_meter, "damaged or of another run"),
    "a digest's name": (fact(rebuilt=[{None: "aa", "teacher": "bb"}]), r"another run \(run\.rebuilt"),
    "no digest": (fact(rebuilt=[{"teacher": None}]), r"another run \(run\.rebuilt"),
    "true as threads": (fact(threads=True), r"another run \(run\.threads: "),
    "no epochs": (fact(epochs=[0]), r"another run \(run\.epochs"),
    "half a batch": (fact(global_batch=1.5), r"another run \(run\.global_batch"),
    "text as options": (fact(options="lr"), r"another run \(run\.options"),
    "no processes": (entry(ranks=[]), r"another run \(ranks: "),
    "a buffer that is none": (entry(ranks=[{"buffers": {"a": 1}, "meter": {}}]), r"another run \(ranks\.0\."),
    "text as scale": (entry(scaler={"scale": "2"}), r"another run \(scaler"),
    "no optimizer": (entry(optimizer=None), r"another run \(optimizer: "),
    "a figure that is none": (entry(best={"top1": "high"}), r"another run \(best\.top1"),
    "a tensor as seconds": (entry(seconds=torch.ones(1)), r"another run \(seconds: .*a tensor where a number"),
    "a tensor as weight": (meter("recent", [torch.zeros(1), [torch.ones(1)]]), r"\.weights\.0: .*a tensor where"),
    "a tensor as figure": (entry(best={"top1": torch.ones(1)}), r"another run \(best\.top1: .*a tensor where"),
    "a tensor as a finished epoch": (entry(epoch=torch.ones(1)), "contradicts itself"),
    "true as a mean": (meter("epoch", [True, 1.0]), r"another run \(ranks\.0\.meter\.epoch"),
    "no run": (lambda state: state.pop("run"), "weights but no run to go on with"),
    "no place": (lambda state: state.pop("position"), "weights but no run to go on with"),
    "more of a place": (moved(more=1), "contradicts itself"),
    "a place without its stage": (lambda state: state["position"].pop("stage"), "contradicts itself"),
    "another count of steps": (one_step, "some parameters have other state than others"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_checkpoint_says_is_checked(trained: Trained, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """Before anything is written, and without a word before it."""
    settings: dict[str, Any] = {"prefixes": {"student.": "module."}} if damage == "tensors twice" else {}
    trained(2, max_steps=4)
    state, change = trained.state, DAMAGES[damage]
    change[0](state)
    before = {path: path.read_bytes() for path in trained.folder.iterdir() if path.name not in ("config.json", ".lock")}
    caplog.clear()
    with pytest.raises(InputError, match=change[1]) as caught:
        trained(3, resume=state, best="top1", **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400 and not caplog.records
    assert {path: path.read_bytes() for path in before} == before


def test_optimizer_options_are_the_runs(trained: Trained) -> None:
    """Those that only the file knows, or that torch adds, change nothing; the rate is the file's until a step."""
    whole = unbroken(trained, 2)
    trained(2, max_steps=4)
    state = trained.state
    option(foreach=True, fused=None, strange=1, initial_lr=5.0, schedule="main")(state)
    trained(2, resume=state)
    assert torch.equal(trained.net.weight, whole.net.weight)
    assert trained.state["optimizer"]["main"]["param_groups"] == whole.state["optimizer"]["main"]["param_groups"]


@pytest.mark.parametrize(("name", "options"), [("adamw", {"betas": (0.5, 0.999)}), ("lars", {"trust_coeff": 0.1})])
def test_options_of_other_optimizers(trained: Trained, name: str, options: dict[str, Any]) -> None:
    def make(net: nn.Module) -> Optimizer:
        return make_optimizer(net.parameters(), name, lr=0.1)

    trained(2, max_steps=4, make=make)
    good, state = trained.state, trained.state
    option(**options)(state)
    with pytest.raises(InputError, match=rf"main has {next(iter(options))}"):
        trained(2, resume=state, make=make)
    assert trained(2, resume=good, make=make).finished


@pytest.mark.parametrize(
    "step",
    [torch.tensor(True), torch.tensor(4), torch.tensor(4.0, dtype=torch.float16), torch.tensor([4.0]),
     torch.tensor(torch.nan), torch.tensor(0.0), -1, True, "4", None],
    ids=str,
)  # fmt: skip
def test_an_optimizers_number_of_steps_is_one(trained: Trained, step: object) -> None:
    """Adam divides by what it follows from; as a bool it ended in torch's own error."""

    def make(net: nn.Module) -> Optimizer:
        return make_optimizer(net.parameters(), "adamw", lr=0.1)

    trained(2, max_steps=4, make=make)
    good, state = trained.state, trained.state
    for values in state["optimizer"]["main"]["state"].values():
        values["step"] = step
    with pytest.raises(InputError, match="its step is not a number of 1 or more"):
        trained(2, resume=state, make=make)
    assert trained(2, resume=good, make=make).finished


def test_all_parameters_count_steps_alike(trained: Trained) -> None:
    """A plain number in one of them was taken, and gave another result."""

    def make(net: nn.Module) -> Optimizer:
        return make_optimizer(net.parameters(), "adamw", lr=0.1)

    trained(2, max_steps=4, make=make)
    state = trained.state
    next(iter(state["optimizer"]["main"]["state"].values()))["step"] = 1
    with pytest.raises(InputError, match="some parameters have other state than others"):
        trained(2, resume=state, make=make)


@pytest.mark.parametrize("stop", [None, 3, 4])
def test_more_epochs_equal_a_run_that_had_them_from_the_start(trained: Trained, stop: int | None) -> None:
    """Where the rate does not depend on their number; also of a run that was over."""
    whole = unbroken(trained, 4)
    trained(2, max_steps=stop)
    result = trained(4, resume=trained.state)
    assert (result.finished, result.done, result.epochs) == (True, 12, 4)
    assert torch.equal(trained.net.weight, whole.net.weight) and trained.events == whole.events
    for name in ("state_dict", "optimizer"):
        assert str(trained.state[name]) == str(whole.state[name])


def test_more_epochs_take_the_new_schedule_and_say_so(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    trained(2, rate=cosine)
    caplog.set_level(logging.INFO)
    caplog.clear()
    trained(4, rate=cosine, resume=trained.state)
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("resuming with epochs [4] after [2]")
    assert said[1] == "going on from step 6 of 12: 6 remain"
    rates = [line["lr"] for line in read_metrics(trained.folder / "metrics.jsonl") if line["event"] == "epoch"]
    assert rates[2] == cosine(0.1)(Clock(0, 2, 4, STEPS, STEPS, 0, 0, 1, 9))
    assert trained(4, rate=cosine, resume=trained.state).finished and "nothing to do" in caplog.text


@pytest.mark.parametrize("stop", [None, 4])
def test_more_epochs_after_an_end_that_changes_the_net_are_refused(trained: Trained, stop: int | None) -> None:
    trained(2, kind=Ending, max_steps=stop)
    state = trained.state
    with pytest.raises(InputError, match=r"2 epochs, and their end changes the net.*start a new run"):
        trained(4, kind=Ending, resume=state)
    assert trained(2, kind=Ending, resume=state).finished


@pytest.mark.parametrize(
    ("then", "stop", "now", "words"),
    [
        ([3], None, [2], r"beyond the 2 epochs of this run: give at least 3, such as the 3"),
        ([3], 6, [2], "beyond the 2 epochs of this run: give at least 3"),
        ([3], 7, [2], "beyond the 2 epochs of this run: give at least 3"),
        ([3], 7, [3], None),
        ([4], 7, [3], None),
        ([2, 2], 7, [3, 2], "a stage of 2 epochs is over, and this run gives it 3: give it 2"),
        ([2, 2], None, [1, 2], "a stage of 2 epochs is over, and this run gives it 1"),
        ([2, 2], 7, [2, 3], None),
        ([2, 2], None, [2, 3], None),
        ([2, 2], 2, [3, 2], None),
        ([2, 2], 5, [1, 2], "beyond the 1 epochs"),
        ([2], None, [2, 2], r"stages of \[2\] epochs, this run's are of \[2, 2\]"),
    ],
)
def test_other_numbers_of_epochs(
    trained: Trained, then: list[int], stop: int | None, now: list[int], words: str | None
) -> None:
    trained(*then, max_steps=stop)
    if words is None:
        result = trained(*now, resume=trained.state)
        assert result.finished and result.done == STEPS * sum(now)
    else:
        with pytest.raises(InputError, match=words):
            trained(*now, resume=trained.state)


def test_max_steps_counts_from_the_runs_start(trained: Trained, caplog: pytest.LogCaptureFixture) -> None:
    trained(2, max_steps=2)
    caplog.set_level(logging.INFO)
    assert (
        trained(2, max_steps=5, resume=trained.state).done == 5 and "going on from step 2 of 5: 3 remain" in caplog.text
    )
    assert trained(2, max_steps=3, resume=trained.state).done == 5
    assert caplog.records[-1].getMessage().startswith("stopping at step 5, which --max-steps 3 has reached: it counts")


@pytest.mark.parametrize("kind", [Supervised, Ending])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("save_every", [None, 2])
def test_a_probe_that_fails_does_not_cost_its_epoch(
    trained: Trained, kind: type[Supervised], epoch: int, save_every: int | None
) -> None:
    """What it needs can be mended, and the run goes on as if nothing had been; every fault is met once."""
    broken: list[int] = []

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if clock.epoch in broken:
            raise InputError("3 of 48 pictures are unreadable")
        return {"top1": 50.0 - clock.epoch}

    settings: dict[str, Any] = {"kind": kind, "probes": [probe], "best": "top1", "save_every": save_every}
    whole = unbroken(trained, 2, **settings)
    broken.append(epoch)
    with pytest.raises(InputError, match="3 of 48"):
        trained(2, **settings)
    state = trained.state
    assert state["step"] == (2 if save_every and not epoch else 3 * (epoch + 1))
    for _ in range(2):
        with pytest.raises(InputError, match="3 of 48"):
            trained(2, resume=trained.state, **settings)
    broken.clear()
    trained(2, resume=trained.state, **settings)
    assert trained.events == whole.events and torch.equal(trained.net.weight, whole.net.weight)
    assert trained.state["best"] == whole.state["best"] and trained.state["lines"] == whole.state["lines"]
    for name in ("checkpoint.pth.tar", "model_best.pth.tar"):
        ours, theirs = (read_checkpoint(run.folder / name) for run in (trained, whole))
        assert str({**ours, "seconds": 0}) == str({**theirs, "seconds": 0})


@pytest.mark.parametrize(
    "value", [torch.tensor(50.0), np.float32(50), np.float64(50), 50, True, float("nan")], ids=repr
)
def test_a_run_goes_on_whatever_number_a_probe_gives(trained: Trained, value: Any) -> None:
    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        return {"top1": value}

    settings: dict[str, Any] = {"probes": [probe], "best": "top1"}
    trained(2, max_steps=4, **settings)
    assert trained(2, resume=trained.state, **settings).finished


def test_the_checkpoint_before_is_of_another_epoch(trained: Trained) -> None:
    trained(3, probes=[lambda clock, objective: {"top1": 1.0}])
    assert trained.state["epoch"] == 3
    assert read_checkpoint(trained.folder / "checkpoint.prev.pth.tar")["epoch"] == 2


@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_became_nan(trained: Trained, at: int) -> None:
    """A checkpoint from before is named where there is one."""

    def rate(base: float) -> Callable[[Clock], float]:
        return lambda clock: float("nan") if clock.done >= at else base

    with pytest.raises(InputError, match="the loss became NaN") as caught:
        trained(3, rate=rate)
    assert ("the last checkpoint is from before" in str(caught.value)) == (at == 3)
    assert (trained.folder / "checkpoint.pth.tar").exists() == (at == 3)
    assert trained.folder.exists() == (at == 3)  # nothing was kept
