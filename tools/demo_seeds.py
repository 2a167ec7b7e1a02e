"""`bsq demo` over several seeds: accuracy against the float net, compression, seconds. Ends with 1 if a bar is missed.

Usage: python tools/demo_seeds.py [SEED ...]    (0 1 2 3 4 without arguments; about a minute each on two cores)
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

POINTS, COMPRESSION, SECONDS = 1.5, 6.0, 180.0  # below the float net at most; at least; at most


def demo(seed: int, folder: Path) -> dict[str, float]:
    """One demo as a user starts it; its wall time includes the start of Python."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "bsq", "demo", "--seed", str(seed), "--output", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    seconds = time.perf_counter() - start
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    last = result["rows"][-1]
    values = {"float": result["top1_float"], "top1": last["top1"], "compression": last["compression"]}
    return {**values, "signed": last["compression_signed"], "whole": last["compression_all"], "seconds": seconds}


def main() -> int:
    """Run the seeds one after the other and print a table."""
    seeds = [int(text) for text in sys.argv[1:]] or [0, 1, 2, 3, 4]
    print("| seed | float top-1 | BSQ top-1 | compression | with signs | whole net | seconds |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            row = demo(seed, Path(folder) / "demo")
        rows.append(row)
        sizes = " | ".join(f"{row[name]:.2f}x" for name in ("compression", "signed", "whole"))
        print(f"| {seed} | {row['float']:.2f} | {row['top1']:.2f} | {sizes} | {row['seconds']:.0f} |", flush=True)
    lost = [row["float"] - row["top1"] for row in rows]
    print(f"points lost: mean {statistics.mean(lost):.2f}, most {max(lost):.2f}")
    met = max(lost) <= POINTS and all(r["compression"] >= COMPRESSION and r["seconds"] <= SECONDS for r in rows)
    bars = f"at most {POINTS:g} points lost, at least {COMPRESSION:g}x, at most {SECONDS:g} s"
    print(f"{bars}: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
