"""What the experiments share: command lines run once into a folder, resumed where they were cut off; means."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def once(
    program: str, folder: Path, resumable: bool, *args: object, checkpoint: str = "checkpoint.pth.tar"
) -> dict[str, Any]:
    """Run a command line, one thread, into a folder unless its result is there; returns the result."""
    result = folder / "result.json"
    if not result.exists():
        begun = resumable and (folder / checkpoint).exists()
        more = ("--output", folder, *(("--resume", "auto") if begun else ("--overwrite",)))
        command = [sys.executable, "-m", program, *map(str, (*args, *more))]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(result.read_text(encoding="utf-8"))


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and sample standard deviation."""
    return f"{statistics.mean(values):{sign}.2f} ± {statistics.stdev(values):.2f}"
