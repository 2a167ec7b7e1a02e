"""Whether a run can go on from a checkpoint, and where: what has to be the same, and what is only reported."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lowbit import __version__
from lowbit.errors import InputError
from lowbit.train.engine import load_optimizers
from lowbit.train.log import Meter
from lowbit.train.protocol import Objective, Stage
from lowbit.train.run import Loader, Run
from lowbit.train.state import Position, load_weights, local_meter

UNNAMED = "0.1.0"  # the release that wrote none into its checkpoints

log = logging.getLogger(__name__)


def facts(stages: Sequence[Stage], loader: Loader, run: Run) -> dict[str, Any]:
    """What has to be the same, or is worth saying, when a run is resumed."""
    return {
        "seed": run.seed,
        "global_batch": loader.global_batch,
        "steps_per_epoch": len(loader),
        "epochs": [stage.epochs for stage in stages],
        "processes": run.accelerator.num_processes,
        "accumulate": run.accumulate,
        "threads": torch.get_num_threads(),
        "mixed_precision": run.accelerator.mixed_precision,
        "options": dict(run.options),
        "rebuilt": [
            {name: digest(stage.objective.get_submodule(name).state_dict()) for name in stage.objective.rebuilt}
            for stage in stages
        ],
    }


def digest(state: Mapping[str, Any]) -> str:
    """A hash of names, shapes, dtypes and bytes of a state dict; 16 hexadecimal digits."""
    found = hashlib.blake2b(digest_size=8)
    for name, value in state.items():
        if isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{name} {value!r}".encode())
    return found.hexdigest()


def check_resume(state: Mapping[str, Any], stages: Sequence[Stage], loader: Loader, run: Run) -> Position:
    """Whether a run can go on from this checkpoint, and where.

    Raises:
        InputError: it was written by something else, by another release, or by a run of another seed, batch, data set
            or net.
    """
    check_release(state)
    try:
        position, then = Position(**state["position"]), dict(state["run"])
        then.get("options", {}).keys()
        rebuilt_then = [dict(digests) for digests in then.get("rebuilt", [])]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            "--resume: the checkpoint holds weights but no run to go on with; name one of this program"
        ) from error
    now = facts(stages, loader, run)
    for name in ("format", "package", "arch"):
        if state.get(name) != run.header.get(name):
            raise InputError(
                f"--resume: the checkpoint's {name} is {state.get(name)}, this run's {run.header.get(name)}: "
                "resume with the options that the run was started with"
            )
    for name in ("seed", "global_batch", "steps_per_epoch"):
        if then.get(name) != now[name]:
            raise InputError(
                f"--resume: the checkpoint was made with {name} {then.get(name)}, this run has {now[name]}: "
                "resume with the options that the run was started with"
            )
    for name in ("epochs", "processes", "accumulate", "threads", "mixed_precision"):
        if then.get(name) != now[name]:
            log.warning(
                "resuming with %s %s after %s: the result is not that of an unbroken run",
                name,
                now[name],
                then.get(name),
            )
    whole = all(type(value) is int and value >= 0 for value in position) and position.step <= now["steps_per_epoch"]
    if not whole:
        raise InputError(f"--resume: the checkpoint stands at {position}, which is no place in this run; name another")
    for name, value in now["options"].items():
        if name in then.get("options", {}) and then["options"][name] != value:
            raise InputError(
                f"--resume: the checkpoint was made with {name} {then['options'][name]}, this run has {value}: resume "
                "with the options that the run was started with"
            )
    for old, new in zip(rebuilt_then, now["rebuilt"], strict=False):
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                raise InputError(
                    f"--resume: the checkpoint was made with other weights in {name} (digest {old.get(name)}, this run "
                    f"has {new.get(name)}): resume with the options that the run was started with"
                )
    if position.stage > len(stages) or (
        position.stage < len(stages) and position.epoch >= stages[position.stage].epochs
    ):
        raise InputError(
            f"--resume: the checkpoint stands at {position}, beyond the {now['epochs']} epochs of this run"
        )
    rehearse(state, stages[min(position.stage, len(stages) - 1)].objective, run, position.stage == len(stages))
    return position


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
        meter = Meter()
        meter.load(local_meter(state, run.accelerator))
        lines, seconds = state["lines"], state["seconds"]
        right = type(lines) is int and type(seconds) is float and isinstance(state["best"], dict | None)
        if not right or not all(isinstance(state["last"][kind], dict) for kind in ("train", "eval")):
            raise ValueError("its notes are not what a run writes")
        if not finished:
            load_optimizers(objective.optimizers(), state["optimizer"])
        state["scaler"]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, ArithmeticError) as error:
        reason = f"{type(error).__name__} {' '.join(str(error).split())[:200]}"
        raise InputError(f"--resume: the checkpoint is damaged or of another run ({reason}); name another") from error
