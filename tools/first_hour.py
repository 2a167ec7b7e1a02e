"""The ten commands of the README's section "Your own pictures", on 200 pictures of two classes; each command's time.

Usage: uv run python tools/first_hour.py ARCHIVE [--update]

ARCHIVE is a tar file of Tiny-ImageNet's training pictures (photos of 64x64, `tiny-imagenet-200/train/CLASS/images/*`).
Of goldfish and black storks the first 100 each are taken, in the order of their names: 80 to train, 20 to evaluate on.
An empty temporary folder gets them as `pictures/`; the commands are copied from the README and run there by a shell,
with the programs of the environment that runs this tool. It exits with 1 if a command fails or takes longer than three
minutes, or if the last one names no class. --update writes the table of times into the README.
"""

import argparse
import csv
import os
import re
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
HEADING = "## Your own pictures"
BEGIN = "<!-- first hour: begin (tools/first_hour.py --update writes it) -->\n"
END = "<!-- first hour: end -->"
CLASSES = {"n01443537": "goldfish", "n02002724": "stork"}
SHARES = {"train": slice(0, 80), "val": slice(80, 100)}
LONGEST = 180  # seconds of a command
COMMANDS = 10


def commands(readme: str) -> list[str]:
    """The lines of the section's first code block, those that end in a backslash joined with the next."""
    section = readme.partition(f"{HEADING}\n")[2]
    block = re.search(r"```\n(.*?)```", section, re.S)
    if block is None:
        raise SystemExit(f"{README}: the section {HEADING!r} holds no commands")
    return re.sub(r" *\\\n *", " ", block[1]).strip().splitlines()


def write_pictures(archive: Path, folder: Path) -> None:
    """The pictures of both classes as `train/CLASS/*` and `val/CLASS/*`.

    Raises:
        SystemExit: the archive lacks some of them.
    """
    with tarfile.open(archive) as tar:
        members = {member.name: member for member in tar if member.isfile()}
        for wnid, name in CLASSES.items():
            found = sorted(path for path in members if f"/train/{wnid}/images/" in path)
            if len(found) < SHARES["val"].stop:
                raise SystemExit(
                    f"{archive} holds {len(found)} pictures train/{wnid}/images/*: {SHARES['val'].stop} are needed"
                )
            for part, share in SHARES.items():
                (folder / part / name).mkdir(parents=True)
                for path in found[share]:
                    content = tar.extractfile(members[path])
                    assert content is not None  # it is a file
                    (folder / part / name / Path(path).name).write_bytes(content.read())


def run(command: str, folder: Path) -> tuple[float, float]:
    """Run a command in a shell; seconds that passed, and CPU seconds."""
    print(f"$ {command}", flush=True)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, shell=True, cwd=folder, env=env, check=True)
    passed, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return passed, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def table(times: dict[str, tuple[float, float]]) -> str:
    """Markdown: each command by its program and name, and its times."""
    rows = ["| command | seconds | CPU seconds |", "|---|---|---|"]
    for command, (passed, computed) in times.items():
        program, name, *_ = command.split()
        rows.append(f"| `{program} {name}` | {passed:.0f} | {computed:.0f} |")
    return "\n".join(rows)


def update(text: str) -> None:
    """Write the table between the README's markers."""
    before, begin, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{README}: the markers of the table are missing")
    README.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


def right(found: Path) -> str:
    """How many pictures the last command named rightly.

    Raises:
        SystemExit: it named something else than the classes.
    """
    with found.open(newline="") as file:
        rows = [(Path(row["picture"]).parent.name, row["class_1"]) for row in csv.DictReader(file)]
    if not rows or not {name for _, name in rows} <= set(CLASSES.values()):
        raise SystemExit(f"{found} names no classes: {rows[:3]}")
    return f"{sum(wanted == name for wanted, name in rows)} of {len(rows)} pictures are named rightly"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archive", type=Path)
    parser.add_argument("--update", action="store_true")
    args = parser.parse_args()
    lines = commands(README.read_text(encoding="utf-8"))
    if len(lines) != COMMANDS:
        raise SystemExit(f"the section {HEADING!r} holds {len(lines)} commands, not {COMMANDS}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_pictures(args.archive, folder / "pictures")
        times = {f"{line} #{number}": run(line, folder) for number, line in enumerate(lines)}
        said = right(folder / "found.csv")
    text = f"{table(times)}\n\n{said}; the longest command took {max(passed for passed, _ in times.values()):.0f} s."
    print(text)
    if args.update:
        update(text)
    return int(any(passed > LONGEST for passed, _ in times.values()))


if __name__ == "__main__":
    sys.exit(main())
