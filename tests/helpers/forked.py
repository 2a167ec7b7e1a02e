"""What forks of the server do for the tests of several methods (`forked_*.py`): kills, weights; not a test itself."""

import os
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from lowbit.train import job
from lowbit.train.engine import Engine
from lowbit.train.loop import _Loop
from lowbit.train.session import Session

Place = tuple[Any, str, str]  # a class, its method, the name of that place
STEP: Place = (Engine, "_step", "step")  # the optimizer is about to step
ENDS: tuple[Place, ...] = ((_Loop, "probe", "probe"), (Session, "write_result", "end"))


def kill_at(places: Iterable[Place], place: str, done: int, passed: int = 0) -> None:
    """Kill this process, with no chance to clean up, at that place where `done` batches were trained.

    Not the first `passed` times: a batch of several passes comes by STEP in each of them.

    ENDS: "probe" (the epoch is over, its figures are due), "end" (trained, the results are due).
    """
    now = 0

    def hook(kind: Any, name: str, here: str) -> None:
        original = getattr(kind, name)

        def instead(*args: Any, **options: Any) -> Any:
            nonlocal now, passed
            now = next((arg.done for arg in args if hasattr(arg, "done")), now)  # of the clock, where there is one
            if (here, now) == (place, done):
                passed -= 1
                if passed < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(kind, name, instead)

    for kind, name, here in places:
        hook(kind, name, here)


def keep_weights(path: str, watch: Callable[[Any], Any] = lambda objective: None) -> None:
    """Leave what the last objective holds at the end in PATH.RANK; with what `watch` returned before, if anything."""
    fit = job.fit

    def instead(stages: Any, loader: Any, run: Any) -> Any:
        objective = stages[-1].objective
        seen = watch(objective)
        result = fit(stages, loader, run)
        state = objective.state_dict()
        torch.save(state if seen is None else (state, seen), f"{path}.{run.accelerator.process_index}")
        return result

    job.fit = instead


def run_command(name: str, main: Callable[[], Any], request: dict[str, Any]) -> None:
    """The command line of a request, as the program of that name."""
    if "weights" in request:
        keep_weights(request["weights"])
    sys.argv = [name, *request["args"]]
    main()
