"""Run every series: each test file that holds tests marked `slow`, one after the other, in a process of its own.

They are what is too long for the ordinary `pytest` (kills at many points, whole test sets, other pairs of widths, the
demo). A table of results and seconds is printed at the end; the exit code is 1 if any file failed. Usage: python
tools/series.py [PATH ...], where paths narrow the choice to files or folders; files without slow tests are left out.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SLOW = re.compile(r"\bmark\.slow\b")


def slow_files(paths: Sequence[Path]) -> Iterator[Path]:
    """Test files under `paths` that mark something slow, in order of name."""
    for path in paths:
        found = sorted(path.rglob("test_*.py")) if path.is_dir() else [path]
        yield from (file for file in found if SLOW.search(file.read_text(encoding="utf-8")))


def run(file: Path) -> tuple[int, str, float]:
    """Exit code of `pytest -m slow`, its last line, and seconds; what it prints is passed on."""
    start, last = time.perf_counter(), "nothing was said"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow", str(file)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    return process.returncode, re.sub(r"\s*in [\d.]+s.*", "", last).strip("= "), time.perf_counter() - start


def main() -> int:
    """Run them and print the table."""
    rows, failed = [], False
    for file in slow_files([Path(arg).resolve() for arg in sys.argv[1:]] or [ROOT / "tests"]):
        code, said, seconds = run(file)
        failed |= code != 0
        name = file.relative_to(ROOT) if file.is_relative_to(ROOT) else file
        rows.append(f"| {name} | {said} | {seconds:.0f} |")
    print("\n".join(["", "| file | result | seconds |", "|---|---|---:|", *rows]))
    return int(failed or not rows)


if __name__ == "__main__":
    sys.exit(main())
