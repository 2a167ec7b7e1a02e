"""What a fork of the server does for S2-BNN's tests: `s2bnn ARGS`, or with "split" runs of tiny_students.py.

With "kill": [PLACE, DONE] a command kills itself, with no chance to clean up, where DONE batches were trained. Places:
"step" (the optimizer is about to step), "probe" (the epoch is over, its figures are due), "end" (trained, the results
are due). With "weights": PATH each process leaves what it holds at the end in PATH.RANK.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
import torch
from tiny_students import split_run

from lowbit.train import job
from lowbit.train.engine import Engine
from lowbit.train.loop import _Loop
from lowbit.train.session import Session
from s2bnn.cli import main
from s2bnn.commands import main_lincls, main_moco  # noqa: F401 (imported once for all forks)


def arm(place: str, done: int) -> None:
    now = 0

    def hook(kind: Any, name: str, here: str) -> None:
        original = getattr(kind, name)

        def instead(*args: Any, **options: Any) -> Any:
            nonlocal now
            now = next((arg.done for arg in args if hasattr(arg, "done")), now)  # of the clock, where there is one
            if (here, now) == (place, done):
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **options)

        setattr(kind, name, instead)

    hook(Engine, "_step", "step")
    hook(_Loop, "probe", "probe")
    hook(Session, "write_result", "end")


def keep_weights(path: str) -> None:
    fit = job.fit

    def instead(stages: Any, loader: Any, run: Any) -> Any:
        result = fit(stages, loader, run)
        torch.save(stages[-1].objective.state_dict(), f"{path}.{run.accelerator.process_index}")
        return result

    job.fit = instead


def child(request: dict[str, Any]) -> None:
    if "split" in request:
        split_run(Path(request["split"]))
        return
    if "kill" in request:
        arm(*request["kill"])
    if "weights" in request:
        keep_weights(request["weights"])
    sys.argv = ["s2bnn", *request["args"]]
    main()
