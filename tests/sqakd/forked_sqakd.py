"""What a fork of the server does for SQAKD's tests: `sqakd ARGS`.

With "kill": DONE the command kills itself in the forward of that batch; with "double" it computes in double precision;
with "weights": PATH each process leaves what its objective holds at the end in PATH.RANK.
"""

import functools
import os
import signal
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
import torch
from forked import run_command

from lowbit.train.session import Session
from sqakd.cli import main
from sqakd.commands import training
from sqakd.objective import Sqakd


def arm(done: int) -> None:
    forward = Sqakd.forward

    def instead(self: Sqakd, batch: Any, clock: Any, *args: Any) -> Any:
        if clock.done == done:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward(self, batch, clock, *args)

    Sqakd.forward = instead  # type: ignore[method-assign]


def child(request: dict[str, Any]) -> None:
    if "kill" in request:
        arm(request["kill"])
    if "double" in request:
        training.Session = functools.partial(Session, dtype=torch.float64)  # type: ignore[misc, assignment]
    run_command("sqakd", main, request)
