"""From a fresh clone with Python and pip alone: the README's commands, and the demos' tables held against the READMEs'.

Usage: python tools/fresh_clone.py [--skip-tests]

This repository's HEAD is cloned into a temporary folder.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.write_demos import METHODS, ROOT, differing


def timed(command: str, folder: Path) -> None:
    """Run one README command word for word in a shell; print how long it took."""
    print(f"$ {command}", flush=True)
    start = time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, check=True)
    print(f"[{time.perf_counter() - start:.0f} s]", flush=True)


def main() -> int:
    """Clone, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--skip-tests", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, python = Path(temporary) / "lowbit", Path(temporary) / "python"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
        with_pip = f"export PATH={python}/bin:$PATH; unset VIRTUAL_ENV; "
        first, *others = METHODS
        timed(with_pip + f"pip install --quiet uv && uv run --quiet {first} demo", folder)
        for method in others:
            timed(with_pip + f"uv run --quiet {method} demo", folder)
        missed = differing(folder)
        if not args.skip_tests:
            timed(with_pip + "uv run --quiet pytest -q -n 2 --dist loadfile", folder)
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
