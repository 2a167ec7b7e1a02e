"""Whether a run can go on from a checkpoint, and where: what has to be the same, and what is only reported."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lowbit import __version__
from lowbit.checkpoint.digest import digest
from lowbit.errors import InputError
from lowbit.train.log import Meter
from lowbit.train.optimizer_state import load_optimizers
from lowbit.train.position import Position, check_position, go_on
from lowbit.train.protocol import Objective, Stage
from lowbit.train.run import Loader, Run
from lowbit.train.saved_run import Facts, read_run
from lowbit.train.state import load_weights, local_meter

UNNAMED = "0.1.0"  # the release that wrote none into its checkpoints

log = logging.getLogger(__name__)


def facts(stages: Sequence[Stage], loader: Loader, run: Run) -> Facts:
    """Of the run that is about to start."""
    return Facts(
        seed=run.seed,
        global_batch=loader.global_batch,
        steps_per_epoch=len(loader),
        epochs=[stage.epochs for stage in stages],
        processes=run.accelerator.num_processes,
        accumulate=run.accumulate,
        threads=torch.get_num_threads(),
        mixed_precision=str(run.accelerator.mixed_precision),
        options=dict(run.options),
        rebuilt=[
            {name: digest(stage.objective.get_submodule(name).state_dict()) for name in stage.objective.rebuilt}
            for stage in stages
        ],
    )


def check_resume(state: Mapping[str, Any], stages: Sequence[Stage], loader: Loader, run: Run) -> Position:
    """Whether a run can go on from this checkpoint, and where. Says nothing (`report_differences` does).

    Raises:
        InputError: it was written by something else, by another release, or by a run of another seed, batch, data set,
            net or optimizer; its numbers contradict each other; another number of epochs cannot follow.
    """
    check_release(state)
    then, now = read_run(state).run, facts(stages, loader, run)
    for name in ("format", "package", "arch"):
        if _differ(state.get(name), run.header.get(name)):
            raise _other(f"the checkpoint's {name} is {state.get(name)!s:.80}, this run's {run.header.get(name)}")
    if len(then.epochs) != len(now.epochs):
        raise _other(f"the checkpoint is of stages of {then.epochs} epochs, this run's are of {now.epochs}")
    for name in ("seed", "global_batch", "steps_per_epoch"):
        if getattr(then, name) != getattr(now, name):
            raise _other(
                f"the checkpoint was made with {name} {getattr(then, name)}, this run has {getattr(now, name)}"
            )
    for name, value in now.options.items():
        if name in then.options and _differ(then.options[name], value):
            raise _other(f"the checkpoint was made with {name} {then.options[name]!s:.80}, this run has {value}")
    for old, new in zip(then.rebuilt, now.rebuilt, strict=False):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise _other(
                    f"the checkpoint was made with other weights in {name} (digest {old.get(name)}, this run has "
                    f"{new.get(name)})"
                )
    position = go_on(check_position(state, then.epochs, now.steps_per_epoch), then.epochs, stages)
    rehearse(state, stages[min(position.stage, len(stages) - 1)].objective, run, position.stage == len(stages))
    return position


def _differ(then: Any, now: Any) -> bool:
    try:
        return bool(then != now)
    except RuntimeError:  # tensors, of which runs are not made
        return True


def _other(what: str) -> InputError:
    return InputError(f"--resume: {what}: resume with the options that the run was started with")


def report_differences(state: Mapping[str, Any], stages: Sequence[Stage], loader: Loader, run: Run) -> None:
    """Warn of what may differ from the run that wrote a checkpoint but does not leave its result the same."""
    then, now = read_run(state).run, facts(stages, loader, run)
    for name in ("epochs", "processes", "accumulate", "threads", "mixed_precision"):
        if getattr(then, name) != getattr(now, name):
            log.warning(
                "resuming with %s %s after %s: the result is not that of an unbroken run",
                name,
                getattr(now, name),
                getattr(then, name),
            )


def check_release(state: Mapping[str, Any]) -> None:
    """Refuse the run of another release: every release reads the weights of all before it, and goes on with its own.

    Patch releases (the third number) do not change what a run does.

    Raises:
        InputError: naming both releases, and what can be done.
    """
    release, package = str(state.get("release", UNNAMED)), state.get("package")
    if "run" in state and release.split(".")[:2] != __version__.split(".")[:2]:
        name = f"lowbit-{package}" if package else "lowbit"
        raise InputError(
            f"--resume: release {release} wrote this checkpoint, and release {__version__} goes on with runs of its "
            f"own alone: finish it with that one (pip install {name}=={release}), or start a new run from its weights"
        )


def rehearse(state: Mapping[str, Any], objective: Objective, run: Run, finished: bool) -> None:
    """Put back everything once, so that what does not fit is found before a folder is written to.

    Raises:
        InputError: weights or optimizers of another net, a damaged or incomplete checkpoint.
    """
    try:
        load_weights(state, objective, run)
        Meter().load(local_meter(state, run.accelerator))
        scaler = run.accelerator.scaler
        if state["scaler"] is not None and scaler is not None and state["scaler"].keys() != scaler.state_dict().keys():
            raise ValueError("its scaler has other entries")
        if state["best"] is not None and run.best is not None and run.best not in state["best"]:
            raise ValueError(f"its best epoch has no {run.best}")
        if not finished:
            load_optimizers(objective.optimizers(), state["optimizer"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
        raise InputError(f"--resume: the checkpoint is damaged or of another run ({reason}); name another") from error
