"""A campaign: the good files, then inputs of all kinds in turn, and the tally of what became of them."""

import gc
import importlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (the digits)
import tiny  # type: ignore[import-not-found]  # noqa: F401  (registers its net)
import torch
import torch._dynamo  # the first optimizer imports it: 2 s that every run would spend
from tools.attacks import checkpoints, configs, endings, exports, folders, lines, pictures
from tools.attacks.forks import start, wait
from tools.attacks.method import Method, Seeds, make
from tools.attacks.methods import METHODS
from tools.attacks.outcome import Kind, attempt

SOURCES: tuple[Callable[[Seeds], tuple[Kind, ...]], ...] = (
    checkpoints.kinds, exports.kinds, configs.kinds, lines.kinds, pictures.kinds, folders.kinds, endings.kinds,
)  # fmt: skip
LATER = ("commands.train", "commands.prune", "commands.finetune", "commands.convert", "commands.report",
         "commands.export", "commands.pretrain", "commands.linear", "commands.sweep", "commands.draw",
         "commands.calibrate", "commands.distill", "commands.slimmable", "commands.main_moco",
         "commands.main_lincls", "commands.training", "load", "config", "description", "prediction")  # fmt: skip


@dataclass
class Broken:
    """Inputs that were treated wrongly in the same way; of the smallest what it is."""

    kind: str
    how: str
    count: int
    number: int
    said: str
    size: int
    err: str


@dataclass
class Tally:
    """What became of the inputs."""

    kinds: Sequence[str]
    tried: Counter[tuple[str, str]] = field(default_factory=Counter)  # by kind and end
    broken: dict[tuple[str, str], Broken] = field(default_factory=dict)  # by kind and how
    seconds: float = 0.0
    computed: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # CPU seconds by kind

    def add(self, kind: str, number: int, answer: dict[str, Any]) -> None:
        """Note one input's end."""
        self.tried[kind, answer["end"]] += 1
        if answer["end"] in ("accepted", "refused"):
            return
        said, size, how = answer["said"], answer["size"], answer["how"]
        key = (kind, " ".join(re.sub(r"\S*attack-\S+", "PATH", re.sub(r"\d+ characters", "", how)).split()[:8]))
        old = self.broken.get(key)
        count = old.count + 1 if old else 1
        if old is None or size < old.size:
            old = Broken(kind, how, count, number, said, size, answer["err"])
        self.broken[key] = old
        old.count = count

    def has(self, how: str | None) -> bool:
        """Whether an input broke in a way that begins so."""
        return how is not None and any(one.how.startswith(how) for one in self.broken.values())

    def report(self, seed: int) -> str:
        """The table, then the smallest input of each way to break."""
        total = sum(self.tried.values())
        rows = [f"seed {seed}: {total} inputs in {self.seconds:.0f} s", ""]
        rows += ["| kind | tried | refused | accepted | broken | CPU s |", "|---|---|---|---|---|---|"]
        for kind in [*self.kinds, "all"]:
            counts = Counter[str]()
            for (of, end), count in self.tried.items():
                counts[end if end in ("accepted", "refused") else "broken"] += count if kind in (of, "all") else 0
            seconds = sum(self.computed.values()) if kind == "all" else self.computed[kind]
            row = (kind, counts.total(), counts["refused"], counts["accepted"], counts["broken"], f"{seconds:.0f}")
            rows.append(f"| {' | '.join(map(str, row))} |")
        for one in sorted(self.broken.values(), key=lambda one: (one.kind, -one.count)):
            rows += ["", f"{one.kind}, {one.count} times: {one.how}"]
            rows.append(
                f"  smallest: {one.said} ({one.size:,} bytes; --kind '{one.kind}' --seed {seed} --from {one.number})"
            )
            rows += [f"  | {line[:200]}" for line in one.err.splitlines()[-8:]]
        return "\n".join(rows)


def attack(
    folder: Path, seconds: float, seed: int, *, only: Sequence[str] | None = None, methods: Sequence[str] | None = None,
    jobs: int = 1, first: int = 0, count: int | None = None, until: str | None = None, keep: Path | None = None,
    report: Path | None = None,
) -> Tally:  # fmt: skip
    """Try inputs for some seconds.

    Args:
        folder: empty, for all files.
        seconds: of attacking, without the making of good files.
        seed: of all inputs.
        only: names of kinds; None: all.
        methods: names of programs whose files and lines are attacked; None: all.
        jobs: processes beside each other.
        first: number of the first input of each kind.
        count: inputs of each kind; None: as many as the time allows.
        until: stop where an input breaks in a way that begins so.
        keep: where the files of broken inputs stay.
        report: file that the report is written to, while it goes on.
    """
    names = [method.program for method in METHODS]
    if unknown := {*(methods or ())} - {*names}:
        raise SystemExit(f"no method {', '.join(unknown)}; they are {', '.join(names)}")
    chosen = [method for method in METHODS if not methods or method.program in methods]
    if not any(method.makes for method in chosen):
        raise SystemExit(f"{', '.join(methods or ())}: no files to attack; name another method beside")
    seeds = prepared(folder, chosen)
    kinds = [kind for of in SOURCES for kind in of(seeds) if only is None or kind.name in only]
    if not kinds:
        raise SystemExit(f"no kind {only}; they are {', '.join(kind.name for of in SOURCES for kind in of(seeds))}")
    tally, begun, written = Tally([kind.name for kind in kinds]), time.monotonic(), 0.0
    forks: list[Any] = []

    def ended(about: tuple[Kind, int, Path], answer: dict[str, Any] | None, how: str, computed: float) -> None:
        kind, number, place = about
        found = {"said": said_of(place), "size": size_of(place), "err": ""}
        found |= answer or {"end": "broken", "how": how}
        tally.add(kind.name, number, found)
        tally.computed[kind.name] += computed
        if keep is not None and found["end"] not in ("accepted", "refused"):
            shutil.copytree(place, keep / f"{kind.name} {number}", symlinks=True, ignore=special, dirs_exist_ok=True)
        shutil.rmtree(place, ignore_errors=True)
        for path in place.parent.glob(f"{place.name}.*"):
            path.unlink()

    number = first
    while (count is None or number < first + count) and time.monotonic() - begun < seconds and not tally.has(until):
        for kind in kinds:
            place = folder / f"{kind.name} {number}".replace(" ", "-")
            place.mkdir()
            forks.append(start(partial(attempt, kind, seed, number, place), (kind, number, place)))
            while len(forks) >= jobs:
                wait(forks, ended)
            tally.seconds = time.monotonic() - begun
            if tally.seconds > seconds:
                break
            if report is not None and tally.seconds - written > 30:
                written = tally.seconds
                report.write_text(tally.report(seed) + "\n")
        number += 1
    while forks:
        wait(forks, ended)
    tally.seconds = time.monotonic() - begun
    if report is not None:
        report.write_text(tally.report(seed) + "\n")
    return tally


def prepared(folder: Path, methods: Sequence[Method]) -> Seeds:
    """The good files of methods, made in processes of their own, and everything imported for the forks to come."""
    torch.set_num_threads(1)
    tempfile.tempdir = None
    seeds = Seeds(folder / "seeds", methods)
    seeds.folder.mkdir()
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    for place in ("train/a", "train/b", "val/a", "val/b"):
        (seeds.folder / "two" / place).mkdir(parents=True)
        for number in range(2):
            (seeds.folder / "two" / place / f"{number}.png").write_bytes(pictures.good("a.png"))
    for method in methods:
        for name in LATER:
            found = f"{method.program}.{name}"
            above = found.rpartition(".")[0]
            if importlib.util.find_spec(above) and importlib.util.find_spec(found):
                importlib.import_module(found)
    gc.freeze()  # a collection in a child would copy every page
    problems: list[str] = []

    def made(about: str, answer: dict[str, Any] | None, how: str, computed: float) -> None:
        if answer is None or answer.get("end") == "tool":
            log = seeds.folder / f"{about}.log"
            problems.append(f"{about}: {how or answer}\n{log.read_text() if log.exists() else ''}")

    def making(method: Any, ready: Callable[[], None]) -> dict[str, Any]:
        importlib.import_module("matplotlib.font_manager")  # lists the fonts of the machine in its folder
        make(method, seeds)
        ready()
        return {}

    forks = [start(partial(making, method), method.program) for method in methods]
    while forks:
        wait(forks, made)
    if problems:
        sys.exit(f"the good files cannot be made: {problems[0]}")
    checkpoints.prepare(seeds)
    return seeds


def special(folder: str, names: list[str]) -> list[str]:
    """Those that cannot be copied."""
    return [name for name in names if (Path(folder) / name).is_fifo()]


def said_of(place: Path) -> str:
    """What an input that did not answer was."""
    path = place.with_suffix(".said")
    return path.read_text() if path.exists() else "?"


def size_of(place: Path) -> int:
    """Bytes of its files."""
    return sum(
        path.lstat().st_size for path in (place / "given").rglob("*") if path.is_file() and not path.is_symlink()
    )
