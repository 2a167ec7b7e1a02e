"""From a fresh clone with Python and pip alone: both README commands, and the demo's table held against the README's.

Usage: python tools/fresh_clone.py [--skip-tests]     clone this repository's HEAD into a temporary folder and run them
       python tools/fresh_clone.py --update           write the table of runs/bsq-demo into README.md
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = re.compile(r"(<!-- demo table: begin[^\n]*-->\n)(.*?)(<!-- demo table: end -->)", re.S)


def readme_table(root: Path) -> str:
    """The table between the README's markers."""
    found = TABLE.search((root / "README.md").read_text(encoding="utf-8"))
    if not found:
        raise SystemExit("README.md: the demo table's markers are missing")
    return found[2].strip()


def update(root: Path) -> None:
    """Write the demo's own table between the README's markers."""
    table = (root / "runs/bsq-demo/table.md").read_text(encoding="utf-8").strip()
    readme = root / "README.md"
    text = TABLE.sub(lambda found: f"{found[1]}{table}\n{found[3]}", readme.read_text(encoding="utf-8"))
    readme.write_text(text, encoding="utf-8")


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
        same = (folder / "runs/bsq-demo/table.md").read_text(encoding="utf-8").strip() == readme_table(folder)
        print("the README's table is the one the demo wrote" if same else "the README's table differs: run --update")
        if not args.skip_tests:
            timed(with_pip + "uv run --quiet pytest -q", folder)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
