"""What a fork of the server does for US3L's tests: `us3l ARGS`, or with "split" or "norms" what is beside it.

With "kill": [PLACE, DONE] a command kills itself, with no chance to clean up, where DONE batches were trained. Places:
0, 1, 2 (the optimizer is about to step after that pass of the next batch), "probe" (the epoch is over,
its figures are due), "end" (trained, the results are due). With "weights": PATH each process leaves what it holds at
the end, and the widths that it trained, in PATH.RANK.
"""

import os
import signal
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from forked import keep_weights, run_command
from norm_ranks import check_norms
from tiny_runs import split_run

from lowbit.train.engine import Engine
from lowbit.train.loop import _Loop
from lowbit.train.session import Session
from us3l.cli import main
from us3l.commands import distill, pretrain, slimmable  # noqa: F401 (imported once for all forks)


def arm(place: str | int, done: int) -> None:
    now = [0, -1]  # batches that were trained, passes of this one

    def hook(kind: Any, name: str, here: str) -> None:
        original = getattr(kind, name)

        def instead(*args: Any, **options: Any) -> Any:
            at = next((arg.done for arg in args if hasattr(arg, "done")), now[0])  # of the clock, where there is one
            passes = (now[1] + 1 if at == now[0] else 0) if name == "_step" else -1
            now[:] = at, passes
            if (passes if name == "_step" else here, at) == (place, done):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(kind, name, instead)

    hook(Engine, "_step", "step")
    hook(_Loop, "probe", "probe")
    hook(Session, "write_result", "end")


def widths(objective: Any) -> list[list[float]]:
    """Those of each step, as it is run."""
    found, passes = list[list[float]](), objective.passes
    objective.passes = lambda clock: found.append([p.variant.width for p in passes(clock)]) or passes(clock)
    return found


def child(request: dict[str, Any]) -> None:
    if "split" in request:
        split_run(Path(request["split"]))
        return
    if "norms" in request:
        check_norms()
        return
    if "kill" in request:
        arm(*request["kill"])
    if "weights" in request:
        keep_weights(request.pop("weights"), widths)
    run_command("us3l", main, request)
