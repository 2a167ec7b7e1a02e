"""The states of a net after each re-quantisation of bit training: evaluated, printed, and the best one kept."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import nn

from bsq import checkpoint
from bsq.commands import printed
from bsq.commands.evaluating import Evaluator
from bsq.compression import size
from bsq.network import nbit_dict
from lowbit.checkpoint.read import read_checkpoint
from lowbit.checkpoint.write import write_checkpoint
from lowbit.errors import InputError
from lowbit.evaluate.classify import Scores
from lowbit.files import previous
from lowbit.train.folder import RunFolder
from lowbit.train.process import on_main
from lowbit.train.protocol import Clock

MISSED = 0.05  # of a target compression: more is reported
NEAR = 0.99  # of the run's highest compression: what `model_best` is chosen among
DEAD = 1e6  # what the infinite compression of a net without a living layer counts

log = logging.getLogger(__name__)


class RequantisedStates:
    """Evaluates and prints around each re-quantisation, and keeps the best re-quantised state.

    `model_best.pth.tar` is the most accurate state among those with at least 99 % of the run's highest compression, or
    among those that meet a target compression where any does. The states that may still become it are kept as
    `requantized-STEP.pth.tar` until the run is over. A dry run does nothing of this.

    Args:
        evaluator: of the command.
        header: entries of every checkpoint.
        target: compression that is aimed at.

    Attributes:
        folder: of the run, once it is open.
    """

    def __init__(self, evaluator: Evaluator, header: Mapping[str, Any], target: float | None = None) -> None:
        self.evaluator, self.header, self.target = evaluator, header, target
        self.folder: RunFolder | None = None
        self.final: dict[str, float] = {}  # of the net that the run ends with
        self._ranks: dict[Path, Rank] = {}  # of the states in the folder, so that each is read once at most

    def __call__(self, clock: Clock, net: nn.Module, when: Literal["before", "after"]) -> Mapping[str, float]:
        """`top1` and `loss` of the net at this moment."""
        session = self.evaluator.session
        if session.options.dry_run:
            return {}
        scores = self.evaluator.scores(net)
        if when == "after":
            last = clock.step == clock.steps_per_epoch
            self.final = {"acc": scores.top1} if last else {}
            title = "Final checkpoint:" if last else "########Model after pruning########"
            rate = printed.compression(size(net), final=last)
            session.say(title, *printed.planes(net), printed.after_pruning(scores), rate)
            if self.folder is not None:
                folder = self.folder
                on_main(session.accelerator, lambda: self._keep(folder, clock, net, scores))
        return {"top1": scores.top1, "loss": scores.loss}

    def _keep(self, folder: RunFolder, clock: Clock, net: nn.Module, scores: Scores) -> None:
        path = folder.path / f"requantized-{clock.done:09d}.pth.tar"
        compression = size(net).compression
        facts = {"epoch": clock.epoch, "step": clock.done, "acc": scores.top1, "best_acc": scores.top1}
        state = {**self.header, **facts, "Nbit_dict": nbit_dict(net), "compression": compression, "optimizer": {}}
        write_checkpoint(path, {**state, "state_dict": checkpoint.state_dict(net)}, keep_previous=False)
        self._ranks[path] = self._rank(compression, scores.top1, clock.done)
        found_now = sorted(folder.path.glob("requantized-*.pth.tar"))
        ranks = {found: self._ranks.get(found) or self._read_rank(found) for found in found_now}
        states = {found: rank for found, rank in ranks.items() if rank is not None}
        past = [rank for rank in states.values() if rank.step <= clock.done]  # others: of a run killed later than this
        for found, rank in list(states.items()):
            if rank not in past or any(other.beats(rank) for other in past):
                found.unlink()
                del states[found]
        highest = max(rank.worth for rank in states.values())
        best = max((r.top1, r.worth, found) for found, r in states.items() if r.worth >= NEAR * highest)[2]
        write_checkpoint(folder.best, read_checkpoint(best), keep_previous=False)

    def _read_rank(self, path: Path) -> "Rank | None":
        """Of a state that an interrupted run left; None: it is damaged, which must not end the training."""
        try:
            state = read_checkpoint(path)
            return self._rank(float(state["compression"]), float(state["acc"]), int(state["step"]))
        except (InputError, KeyError, TypeError, ValueError) as error:
            log.warning("%s is left out of the choice of the best state: %s", path, error)
            return None

    def _rank(self, compression: float, top1: float, step: int) -> "Rank":
        met = self.target is not None and meets(compression, self.target)
        return Rank(math.inf if met else min(compression, DEAD), top1, step)

    def clear(self) -> None:
        """The run is over, and its last checkpoint written: the states beside that and `model_best.pth.tar` go."""
        if self.folder is not None and self.evaluator.session.accelerator.is_main_process:
            for found in [*self.folder.path.glob("requantized-*.pth.tar"), previous(self.folder.checkpoint)]:
                found.unlink(missing_ok=True)


class Rank(NamedTuple):
    """A re-quantised state by what it is ranked by; `worth` is its compression, infinite where that meets a target."""

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
