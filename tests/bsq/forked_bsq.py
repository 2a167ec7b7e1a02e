"""What a fork of the server does for BSQ's tests: `bsq ARGS`; with "kill": [PLACE, DONE] it kills itself there."""

import sys
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
from killing import arm

import bsq.commands.finetune
import bsq.commands.train  # noqa: F401 (imported once for all)
from bsq.cli import main
from bsq.commands import requantised

# the checkpoint before the last stays, with its optimizer, to be compared; what a finished run removes: test_disk.py
requantised.previous = lambda path: path.with_name("none")


def child(request: dict[str, Any]) -> None:
    if "kill" in request:
        arm(*request["kill"])
    sys.argv = ["bsq", *request["args"]]
    main()
