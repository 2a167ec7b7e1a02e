"""Folders: of runs with entries that no run has left there, and of pictures with names and links of all sorts."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import torch
from tools.attacks.checkpoints import content
from tools.attacks.damage import flipped
from tools.attacks.method import Seeds, run
from tools.attacks.outcome import Attempt, Kind
from tools.attacks.pictures import good

from lowbit.data.datasets import load_dataset

NAMES = ("config.json", "metrics.jsonl", "train.log", "result.json", ".lock", "checkpoint.pth.tar",
         "model_best.pth.tar",
         "checkpoint.prev.pth.tar", "backbone.safetensors", ".checkpoint.pth.tar.tmp", ".checkpoint.pth.tar.link",
         ".config.json.tmp", ".result.json.tmp", "log.txt", "table.md", "report.json",
         "checkpoint", "checkpoints", "mine.txt", "mine.pth.tar")  # fmt: skip
TEXTS = (
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"command": 5}',
    b"\xff\xfe",
    b"\0" * 100,
    b'{"a": 1}\n' * 3,
    b"[" * 100_000,
    b"NaN",
)


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """Those of folders."""

    def of_run(rng: Random, folder: Path) -> Attempt:
        method = rng.choice([method for method in seeds.methods if method.resumes])
        name = rng.choice([*method.resumes])
        precious, out, last = folder / "precious", folder.parent / "out", method.makes[name][1]
        precious.mkdir()
        (precious / "file").write_text("precious")
        out.mkdir()
        said = []
        if rng.random() < 0.5:
            (out / last).parent.mkdir(exist_ok=True)
            (out / last).write_bytes((seeds.folder / name).read_bytes())
            (out / "config.json").write_text(json.dumps({"command": method.resumes[name].split()[0]}))
            said.append("a run")
        for _ in range(rng.choice((1, 1, 2, 3))):
            said.append(put(rng, out, precious, seeds.folder / name))
        (out / "mine.md").write_text("not of a run")
        how = rng.choice(([], ["--resume", "auto"], ["--resume", "auto"], ["--overwrite"], ["--overwrite"]))
        line = [*seeds.line(method.resumes[name]), "--output", str(out), "--max-steps", "4", *how]
        shown = f"{method.program} {line[0]} {' '.join(how)} in a folder with {', '.join(said)}"
        holds = os.path.lexists(out / "config.json")  # a run, whose copies of checkpoints may have any name
        mine = {path: state(path) for path in out.glob("mine*") if not (holds and path.match("*.pth.tar"))}

        def check(result: object) -> str | None:
            for path, was in mine.items():
                if state(path) != was:
                    return f"{path.name}, which is not of a run, is gone or changed"
            made = content(out / last)
            if made["step"] != 4:
                return f"the checkpoint stands at step {made['step']}, not 4"
            return None if isinstance(next(iter(made["state_dict"].values())), torch.Tensor) else "no tensors"

        return Attempt(lambda: run(method, line), shown, len(said), check)

    def of_pictures(rng: Random, folder: Path) -> Attempt:
        root = folder / "data"
        expected: dict[str, int] = {}
        for place in ("train/a", "train/b", "val/a", "val/b"):
            (root / place).mkdir(parents=True)
            for number in range(rng.randrange(1, 4)):
                (root / place / f"{number}.png").write_bytes(good("a.png"))
                expected[place] = expected.get(place, 0) + 1
        said = [rng.choice(ENTRIES)(root / rng.choice([*expected]), rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        split = rng.choice(("train", "test"))
        part = "train" if split == "train" else "val"
        counts = [expected[f"{part}/{name}"] for name in "ab"]
        shown = f"load_dataset {split} of a folder with {', '.join(said)}"

        def check(labels: object) -> str | None:
            found = torch.bincount(torch.as_tensor(labels), minlength=2).tolist()
            return None if found == counts else f"{found} pictures a class, not {counts}"

        return Attempt(lambda: load_dataset("folder", root, split).labels, shown, len(said), check)  # type: ignore[arg-type]

    return (Kind("run folder", of_run), Kind("picture folder", of_pictures))


def state(path: Path) -> tuple[int, ...] | None:
    """What tells an entry from another and from what it was before; None: there is none."""
    if not os.path.lexists(path):
        return None
    found = path.lstat()
    return (found.st_ino,) if path.is_dir() else (found.st_ino, found.st_size, found.st_mtime_ns)


def put(rng: Random, out: Path, precious: Path, checkpoint: Path) -> str:
    """An entry that no run has left there; what it is, in words."""
    name, way = rng.choice(NAMES), rng.randrange(8)
    path = out / name
    if path.is_dir():
        return f"{name} twice"
    path.unlink(missing_ok=True)
    if way == 0:
        path.mkdir()
        (path / "mine.txt").write_text("not of a run")
        return f"{name}/"
    if way == 1:
        os.mkfifo(path)
        return f"the FIFO {name}"
    if way == 2 and name not in ("train.log", "log.txt"):  # appended to, wherever their owner's link leads
        path.symlink_to(precious / rng.choice(("file", "new", ".")))
        return f"{name} -> {path.readlink().name}"
    if way == 3:
        path.symlink_to(name)
        return f"{name} -> itself"
    if way == 4:
        data, said = flipped(rng, checkpoint.read_bytes())
        path.write_bytes(data)
        return f"a checkpoint as {name}, {said}"
    if way == 5:
        path.symlink_to(rng.choice(("/dev/full", "/dev/zero", "/dev/null")))
        return f"{name} -> {path.readlink()}"
    text = rng.choice(TEXTS)
    path.write_bytes(text)
    return f"{name} = {text[:20]!r}"


def _hidden(place: Path, rng: Random) -> str:
    name = rng.choice(("._0.png", ".DS_Store", ".hidden.jpg", "Thumbs.db", "notes.txt", "0.png.bak", "x.npy"))
    (place / name).write_bytes(good("a.png"))
    return name


def _hidden_folder(place: Path, rng: Random) -> str:
    where = place / rng.choice((".cache", ".git", "../.hidden"))
    where.mkdir(exist_ok=True)
    (where / "x.png").write_bytes(good("a.png"))
    return f"{where.name}/x.png"


def _loop(place: Path, rng: Random) -> str:
    target = rng.choice((".", "..", "../..", "../../train", "../../val", "nothing", "loop", "../a", "../b", "/dev"))
    link = place / "loop"
    if not os.path.lexists(link):
        link.symlink_to("nothing" if target == "/dev" else target)
    return f"{place.parent.name}/{place.name}/loop -> {link.readlink()}"


def _two_loops(place: Path, rng: Random) -> str:
    for name, target in (("l1", "../b"), ("l2", "../a"), ("l3", ".")):
        if not os.path.lexists(place / name):
            (place / name).symlink_to(target)
    return "three links to each other"


def _empty(place: Path, rng: Random) -> str:
    (place / rng.choice(("empty", "a b", "é", "-x", "a" * 200)) / "deeper").mkdir(parents=True, exist_ok=True)
    return "empty folders"


def _class_link(place: Path, rng: Random) -> str:
    link = place.parent / rng.choice((".x", "..x"))
    if not os.path.lexists(link):
        link.symlink_to(place.name)
    return f"{link.name} -> {place.name} among the classes"


ENTRIES: tuple[Callable[[Path, Random], str], ...] = (_hidden, _hidden_folder, _loop, _two_loops, _empty, _class_link)
