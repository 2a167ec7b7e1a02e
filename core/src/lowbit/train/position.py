"""Where a run stands, whether a checkpoint can stand there, and where it goes on under other numbers of epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lowbit.errors import InputError
from lowbit.train.protocol import Objective, Stage


class Position(NamedTuple):
    """Where a run stands.

    `step == 0`: `begin_epoch` is still to run; `step == steps_per_epoch`: probes and `end_stage` are; `stage` = number
    of stages: nothing is.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    done: int = 0


def epochs_before(epochs: Sequence[int], position: Position, steps_per_epoch: int) -> int:
    """Epochs of all stages, of so many `epochs` each, whose batches are over."""
    return sum(epochs[: position.stage]) + position.epoch + (position.step == steps_per_epoch)


def check_position(state: Mapping[str, Any], epochs: Sequence[int], steps_per_epoch: int) -> Position:
    """The position of a checkpoint, if its own numbers agree with each other.

    Args:
        state: the checkpoint's content.
        epochs: of each stage of the run that wrote it.
        steps_per_epoch: of that run.

    Raises:
        InputError: no run of these numbers ever stands there.
    """
    saved = state["position"]
    position = Position(*(saved.get(name) for name in Position._fields))
    stage, epoch, step, _ = position
    found = {"done": position.done, "step": state.get("step"), "epoch": state.get("epoch")}
    inside = all(type(value) is int and value >= 0 for value in (*position, *found.values()))
    inside = inside and saved.keys() == {*Position._fields} and stage <= len(epochs) and step <= steps_per_epoch
    if inside and (epoch < epochs[stage] if stage < len(epochs) else epoch == step == 0):
        done = (sum(epochs[:stage]) + epoch) * steps_per_epoch + step
        if found == {"done": done, "step": done, "epoch": epochs_before(epochs, position, steps_per_epoch)}:
            return position
    raise InputError(
        f"--resume: the checkpoint stands at {tuple(position)!s:.60} (step {found['step']!r:.20}, epoch "
        f"{found['epoch']!r:.20}), which is beyond the {list(epochs)!s:.40} epochs of {steps_per_epoch} steps of its "
        "run or contradicts itself: name another"
    )


def go_on(position: Position, then: Sequence[int], stages: Sequence[Stage]) -> Position:
    """Where a run goes on whose stages had `then` epochs each.

    Raises:
        InputError: fewer epochs than are done, other ones of a stage that is over, or more of a stage whose end changes
            the net (`Objective.end_stage`).
    """
    now, last = [stage.epochs for stage in stages], len(stages) - 1
    for number, (before, after, stage) in enumerate(zip(then, now, stages, strict=True)):
        if number < min(position.stage, last):
            if after != before:
                raise InputError(
                    f"--resume: a stage of {before} epochs is over, and this run gives it {after}: give it {before}"
                )
        elif number <= position.stage and after < (least := before if number < position.stage else position.epoch + 1):
            raise InputError(
                f"--resume: the checkpoint is beyond the {after} epochs of this run: give at least {least}, such as "
                f"the {before} that it was started with"
            )
        if after > before and type(stage.objective).end_stage is not Objective.end_stage:
            raise InputError(
                f"--resume: this run was started with {before} epochs, and their end changes the net, so {after} are "
                f"not the same run made longer: resume with {before}, or start a new run from its weights"
            )
    if position.stage > last and now[last] > then[last]:
        return Position(last, then[last], 0, position.done)
    return position
