"""From a fresh clone with Python and pip alone: the README's commands, and the demos' tables held against the READMEs'.

Usage: python tools/fresh_clone.py [--skip-tests]     clone this repository's HEAD into a temporary folder and run them
       python tools/fresh_clone.py --update           write the tables of runs/*-demo into the READMEs
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMOS = {
    "bsq": "README.md",
    "ssql": "ssql/README.md",
    "us3l": "us3l/README.md",
    "s2bnn": "s2bnn/README.md",
    "sqakd": "sqakd/README.md",
}  # method: where the table of its demo stands
BEGIN, END = "<!-- demo table: begin (tools/fresh_clone.py --update writes it) -->\n", "<!-- demo table: end -->"


def demo_table(root: Path, method: str) -> str:
    """What a demo wrote."""
    return (root / f"runs/{method}-demo/table.md").read_text(encoding="utf-8").strip()


def parts(readme: Path) -> tuple[str, str, str]:
    """A README up to its demo table, the table, and what follows."""
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    table, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{readme}: the demo table's markers are missing")
    return before + begin, table, end + after


def update(root: Path) -> None:
    """Write the demos' own tables between the READMEs' markers."""
    for method, name in DEMOS.items():
        before, _, after = parts(root / name)
        (root / name).write_text(f"{before}{demo_table(root, method)}\n{after}", encoding="utf-8")


def timed(command: str, folder: Path) -> None:
    """Run one README command word for word in a shell; print how long it took."""
    print(f"$ {command}", flush=True)
    start = time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, check=True)
    print(f"[{time.perf_counter() - start:.0f} s]", flush=True)


def main() -> int:
    """Clone, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true")
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args()
    if args.update:
        update(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        folder, python = Path(temporary) / "lowbit", Path(temporary) / "python"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
        with_pip = f"export PATH={python}/bin:$PATH; unset VIRTUAL_ENV; "
        timed(with_pip + "pip install --quiet uv && uv run --quiet bsq demo", folder)
        timed(with_pip + "uv run --quiet ssql demo", folder)
        timed(with_pip + "uv run --quiet us3l demo", folder)
        timed(with_pip + "uv run --quiet s2bnn demo", folder)
        timed(with_pip + "uv run --quiet sqakd demo", folder)
        differing = [m for m, name in DEMOS.items() if demo_table(folder, m) != parts(folder / name)[1].strip()]
        for method, name in DEMOS.items():
            said = "differs from what the demo wrote: run --update" if method in differing else "is what the demo wrote"
            print(f"the table in {name} {said}")
        if not args.skip_tests:
            timed(with_pip + "uv run --quiet pytest -q -n 2 --dist loadfile", folder)
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
