"""What a fork of the server does for SSQL's tests: `ssql ARGS`, or with "split" runs of ssl_ranks.py.

With "kill": [PLACE, DONE] a command kills itself, with no chance to clean up, where DONE batches were trained. Places,
in their order: "begun" (bits are drawn for the next batch), "observed" (its float pass is over), "probe" (the epoch is
over, its figures are due), "end" (trained, the results are due). With "weights": PATH each process of `ssql ssl` leaves
what it holds at the end in PATH.RANK.
"""

from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from forked import ENDS, kill_at, run_command
from ssl_ranks import split_run

from ssql.cli import main
from ssql.objective import SelfSupervised

PLACES = ((SelfSupervised, "draw_", "begun"), (SelfSupervised, "quantized", "observed"), *ENDS)


def child(request: dict[str, Any]) -> None:
    if "split" in request:
        split_run(Path(request["split"]))
        return
    if "kill" in request:
        kill_at(PLACES, *request["kill"])
    run_command("ssql", main, request)
