"""What the experiments share: arguments, command lines run once into a folder and resumed, means, tables in files."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def arguments(doc: str | None, *paths: str) -> argparse.ArgumentParser:
    """Those that all experiments have: paths, and how many command lines run side by side."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    for name in paths:
        parser.add_argument(name, type=Path)
    parser.add_argument("--jobs", type=int, default=2)
    return parser


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
    """Mean and sample standard deviation; one value alone."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def report(runs: Sequence[Mapping[str, Any]], table: str, output: Path, begun: float) -> None:
    """Write results and their table into a folder; print the table and the minutes.

    Args:
        runs: all results; entries named `seconds...` are times of processes.
        table: in Markdown.
        output: the folder.
        begun: `time.perf_counter()` at the start.
    """
    (output / "runs.json").write_text(json.dumps(runs, indent=1), encoding="utf-8")
    (output / "table.md").write_text(table, encoding="utf-8")
    minutes = sum(run[key] for run in runs for key in run if key.startswith("seconds")) / 60
    print(table)
    print(f"{minutes:.0f} process minutes in all; {(time.perf_counter() - begun) / 60:.0f} minutes on the wall now")
