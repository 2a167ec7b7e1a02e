"""What a fork of the server does for S2-BNN's tests: `s2bnn ARGS`, or with "split" runs of tiny_students.py.

With "kill": [PLACE, DONE] a command kills itself, with no chance to clean up, where DONE batches were trained. Places:
"step" (the optimizer is about to step), "probe" (the epoch is over, its figures are due), "end" (trained, the results
are due). With "weights": PATH each process leaves what it holds at the end in PATH.RANK.
"""

from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from forked import ENDS, STEP, kill_at, run_command
from tiny_students import split_run

from s2bnn.cli import main
from s2bnn.commands import main_lincls, main_moco  # noqa: F401 (imported once for all forks)


def child(request: dict[str, Any]) -> None:
    if "split" in request:
        split_run(Path(request["split"]))
        return
    if "kill" in request:
        kill_at((STEP, *ENDS), *request["kill"])
    run_command("s2bnn", main, request)
