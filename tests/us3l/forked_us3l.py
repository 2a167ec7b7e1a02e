"""What a fork of the server does for US3L's tests: `us3l ARGS`, or with "split" runs of tiny_runs.py."""

import sys
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from tiny_runs import split_run

from us3l.cli import main


def child(request: dict[str, Any]) -> None:
    if "split" in request:
        split_run(Path(request["split"]))
        return
    sys.argv = ["us3l", *request["args"]]
    main()
