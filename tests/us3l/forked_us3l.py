"""What a fork of the server does for US3L's tests: `us3l ARGS`, or with "split" or "norms" what is beside it.

With "kill": [PLACE, DONE] a command kills itself, with no chance to clean up, where DONE batches were trained. Places:
0, 1, 2 (the optimizer is about to step after that pass of the next batch), "probe" (the epoch is over,
its figures are due), "end" (trained, the results are due). With "weights": PATH each process leaves what it holds at
the end, and the widths that it trained, in PATH.RANK.
"""

from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from forked import ENDS, STEP, keep_weights, kill_at, run_command
from norm_ranks import check_norms
from tiny_runs import split_run

from us3l.cli import main
from us3l.commands import distill, pretrain, slimmable  # noqa: F401 (imported once for all forks)


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
        place, done = request["kill"]
        kill_at((STEP, *ENDS), *((place, done) if isinstance(place, str) else ("step", done, place)))
    if "weights" in request:
        keep_weights(request.pop("weights"), widths)
    run_command("us3l", main, request)
