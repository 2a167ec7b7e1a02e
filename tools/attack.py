"""Attack the programs with inputs that nobody should have to fear, and report what did not hold.

Usage: python tools/attack.py --seconds 600 --seed 0 [--kind NAME] [--method NAME] [--jobs N] [--report FILE] [--from N]

The promise: bad input is one line of at most 300 characters on stderr and exit code 2, nothing is written, nothing is
lost, no code is run; a good file is accepted with right values. An input is *broken* by a traceback, another exit code,
other output, a hang (10 s), memory (1 GiB over the start), a file written, code run, or a wrong result accepted.

Input N of a kind is a function of the seed, the methods, the kind and N alone: `--kind NAME --from N --count 1` makes
it again, and with `--keep FOLDER` its files stay there.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/releases")]
os.environ |= {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "TORCH_CPP_LOG_LEVEL": "ERROR"}


def main(arguments: list[str]) -> int:
    options = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    options.add_argument("--seconds", type=float, default=600, help="of attacking; making the good files comes before")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--kind", action="append", help="only this kind (repeatable)")
    options.add_argument("--method", action="append", help="only this program's files and lines (repeatable)")
    options.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes beside each other")
    options.add_argument("--from", dest="first", type=int, default=0, help="number of the first input of each kind")
    options.add_argument("--count", type=int, help="inputs of each kind")
    options.add_argument("--until", metavar="TEXT", help="stop where an input breaks so (the beginning of how)")
    options.add_argument("--keep", type=Path, help="folder in which the files of broken inputs stay")
    options.add_argument("--report", type=Path, help="file that the report is written to, while it goes on")
    given = options.parse_args(arguments)
    from tools.attacks.campaign import attack

    with tempfile.TemporaryDirectory(prefix="attack-") as folder:
        tally = attack(
            Path(folder), given.seconds, given.seed, only=given.kind, methods=given.method, jobs=given.jobs,
            first=given.first, count=given.count, until=given.until, keep=given.keep, report=given.report,
        )  # fmt: skip
    print(tally.report(given.seed), flush=True)
    return 1 if tally.broken else 0


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # taking all these modules apart takes 2 s
