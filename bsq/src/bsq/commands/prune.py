"""`bsq cifar_prune_STE`: training in bit form, which finds each layer's precision."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from bsq import checkpoint, load
from bsq.commands import opening, printed
from bsq.commands.evaluating import Session, figures
from bsq.commands.report import summary
from bsq.commands.training import Phase, run_phase, started, student
from bsq.network import bit_layers, nbit_dict, prune_, to_bit_form_, to_bits_
from bsq.objective import BitSparsity
from bsq.options import ActOptions, NetOptions, PruneOptions, SgdOptions
from bsq.size import size
from bsq.target import Aim
from lowbit.checkpoint.read import read_checkpoint
from lowbit.checkpoint.write import write_checkpoint
from lowbit.data.recipe import Recipe
from lowbit.evaluate.classify import Scores
from lowbit.options import RunOptions
from lowbit.quant.calibrate import uncalibrated
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Result
from lowbit.train.process import on_main
from lowbit.train.protocol import Clock, Objective

MISSED = 0.05  # of a target compression, which is told
NEAR = 0.99  # of the run's highest compression: what `model_best` is chosen among
DEAD = 1e6  # what the infinite compression of a net without a living layer counts

log = logging.getLogger(__name__)


class Watch:
    """Evaluates and records around each re-quantisation, and keeps the best re-quantised state.

    `model_best.pth.tar` is the most accurate state among those with at least 99 % of the run's highest compression, or
    among those that meet a target compression where any does. The states that may still become it are kept as
    `requantized-STEP.pth.tar` until the run is over.
    """

    def __init__(self, session: Session, recipe: Recipe, head: Mapping[str, Any], target: float | None = None) -> None:
        self.session, self.recipe, self.head, self.target = session, recipe, head, target
        self.folder: RunFolder | None = None
        self._ranks: dict[Path, Rank] = {}  # of the states in the folder, so that each is read once at most

    def __call__(self, clock: Clock, net: nn.Module, when: Literal["before", "after"]) -> Mapping[str, float]:
        """`top1` and `loss` of the net at this moment."""
        scores = self.session.scores(net, self.recipe)
        if when == "after":
            last = clock.step == clock.steps_per_epoch
            title = "Final checkpoint:" if last else "########Model after pruning########"
            self.session.say(
                title,
                *printed.planes(net),
                printed.after_pruning(scores),
                printed.compression(size(net)),
            )
            if self.folder is not None:
                folder = self.folder
                on_main(self.session.accelerator, lambda: self._keep(folder, clock, net, scores))
        return {"top1": scores.top1, "loss": scores.loss}

    def _keep(self, folder: RunFolder, clock: Clock, net: nn.Module, scores: Scores) -> None:
        path = folder.path / f"requantized-{clock.done:09d}.pth.tar"
        facts = {"epoch": clock.epoch, "step": clock.done, "acc": scores.top1, "best_acc": scores.top1}
        state = {**self.head, **extra(net), **facts, "optimizer": {}, "state_dict": checkpoint.state_dict(net)}
        compression = size(net).compression
        write_checkpoint(path, {**state, "compression": compression}, keep_previous=False)
        self._ranks[path] = self._rank(compression, scores.top1, clock.done)
        found_now = sorted(folder.path.glob("requantized-*.pth.tar"))
        states = {found: self._ranks.get(found) or self._read_rank(found) for found in found_now}
        past = [rank for rank in states.values() if rank.step <= clock.done]  # others: of a run killed later than this
        for found, rank in list(states.items()):
            if rank not in past or any(other.beats(rank) for other in past):
                found.unlink()
                del states[found]
        highest = max(rank.worth for rank in states.values())
        best = max((r.top1, r.worth, found) for found, r in states.items() if r.worth >= NEAR * highest)[2]
        write_checkpoint(folder.best, read_checkpoint(best), keep_previous=False)

    def _read_rank(self, path: Path) -> "Rank":
        state = read_checkpoint(path)
        return self._rank(state["compression"], state["acc"], state["step"])

    def _rank(self, compression: float, top1: float, step: int) -> "Rank":
        met = self.target is not None and meets(compression, self.target)
        return Rank(math.inf if met else min(compression, DEAD), top1, step)

    def clear(self) -> None:
        """The run is over: the states beside `model_best.pth.tar` go."""
        if self.folder is not None and self.session.accelerator.is_main_process:
            for found in self.folder.path.glob("requantized-*.pth.tar"):
                found.unlink()


class Rank(NamedTuple):
    """A re-quantised state by what it is judged by; `worth` is its compression, infinite where that meets a target."""

    worth: float
    top1: float
    step: int

    def beats(self, other: "Rank") -> bool:
        """Whether `other` can never again be chosen: worth as much, as accurate, and better or earlier."""
        as_good = self.worth >= other.worth and self.top1 >= other.top1
        return as_good and (self[:2] != other[:2] or self.step < other.step)


def meets(compression: float, target: float) -> bool:
    """Whether a compression is near enough to the target."""
    return abs(compression / target - 1) <= MISSED


def extra(net: nn.Module) -> dict[str, Any]:
    """What changes with the widths, in every checkpoint."""
    return {"Nbit_dict": nbit_dict(net)}


def prune(
    options: RunOptions, net: NetOptions, acts: ActOptions, sgd: SgdOptions, bits: PruneOptions, evaluate: bool = False
) -> Result | Scores | None:
    """Train in bit form, or only evaluate. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came; the run is saved.
    """
    with Session(options, net) as session:
        model, saved, recipes, head = opening.open_net(session, net, acts, required=evaluate)
        if saved is None or saved.form == "float":
            if saved is not None:
                load.load_float_(model, saved, new_head=not evaluate)
            to_bits_(model, bits.bits)
        else:
            load.check_activations(saved, model)
            to_bit_form_(load.load_planes_(model, saved))
        if uncalibrated(model):
            session.calibrate(model, recipes[1], sgd.train_batch)
        if evaluate:
            return _evaluate(session, model, recipes[1])
        return _train(session, model, acts, sgd, bits, recipes, head)


def _evaluate(session: Session, model: nn.Module, recipe: Recipe) -> Scores | None:
    if session.planned(model, recipe):
        return None
    sizes = session.batch_sizes()
    with session.folder("cifar_prune_STE", **sizes) as folder:
        session.say(*printed.parameters(model))
        scores = session.scores(model, recipe)
        session.say(*printed.planes(model), printed.accuracy(scores), printed.test_line(scores))
        session.write_result(folder, {**figures(scores), **summary(model), **sizes})
    return scores


def _train(
    session: Session,
    model: nn.Module,
    acts: ActOptions,
    sgd: SgdOptions,
    bits: PruneOptions,
    recipes: tuple[Recipe, Recipe],
    head: dict[str, Any],
) -> Result | None:
    names = list(bit_layers(model))
    bits.check(names)
    ceiling, floor = bits.ceiling(names), bits.floor(names)
    head = {**head, checkpoint.FLOORS: {name: floor(name) for name in names if floor(name) > 1}}
    net = student(session, prune_(model, at_least=floor))
    watch = Watch(session, recipes[1], head, bits.target)
    at_start = started(session) or {"compression_start": size(net).compression}
    first, aim = at_start.get("compression_start", size(net).compression), None
    if bits.target is not None:
        aim = Aim(bits.decay, first, bits.target)
        aim.check(bit_layers(net), floor)
    objective = BitSparsity(
        net,
        sgd,
        strength=bits.decay if bits.lasso or aim is not None else 0.0,
        interval=bits.interval,
        threshold=bits.threshold,
        ceiling=ceiling,
        floor=floor,
        watch=watch,
        aim=aim,
    )

    def opened(folder: RunFolder | None) -> None:
        watch.folder = folder

    def start() -> None:
        scores = session.scores(net, recipes[1])
        at_start["top1_start"] = scores.top1
        session.say(*printed.planes(net), printed.accuracy(scores))

    def end(folder: RunFolder | None, result: Result) -> Mapping[str, Any]:
        if not result.finished:
            return summary(net)
        watch.clear()
        scores, found = session.scores(net, recipes[1]), size(net).compression
        session.say("Best acc:", f"{scores.top1:.2f}")
        if bits.target is not None and not meets(found, bits.target):
            log.warning("--target-compression %g was not met: the net ends at %.2f", bits.target, found)
        return {
            **at_start,
            "target_compression": bits.target,
            "top1": scores.top1,
            "top5": scores.top5,
            "loss": scores.loss,
            **summary(net),
        }

    phase = Phase(
        command="cifar_prune_STE",
        objective=objective,
        recipes=recipes,
        header=head,
        extra=_extra_of,
        columns=printed.PRUNE_COLUMNS,
        row=lambda epoch, valid: (*printed.row(epoch, valid), valid["reg"], epoch.get("compression", first)),
        values=lambda: {"reg": objective.reg()},
        best=False,
        groups=(acts, bits),
        at_start=at_start,
        opened=opened,
        start=start,
        end=end,
    )
    return run_phase(session, sgd, phase)


def _extra_of(objective: Objective) -> Mapping[str, Any]:
    return extra(objective.get_submodule("student"))
