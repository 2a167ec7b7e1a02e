"""Checkpoints: bytes, records, contents; read by `lowbit.load`, by commands, and as what a run goes on from."""

import io
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tools.attacks.damage import bomb, flipped, rewritten, special
from tools.attacks.method import Method, Seeds, run
from tools.attacks.outcome import Attempt, Kind
from tools.attacks.values import authored
from torch import Tensor, nn

import lowbit
from lowbit.checkpoint.pickled import HARMLESS

LACKED = ("num_batches_tracked", ".largest", ".seen")  # tensors of a net that files may lack
ONLINE = "encoder_q."
STEMS = ("", "module.", ONLINE, "backbone.")


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """Those of checkpoints."""
    files = seeds.of(".pth.tar")

    def bytes_(rng: Random, folder: Path) -> Attempt:
        source = rng.choice(files)
        data, legacy = source.read_bytes(), rng.random() < 0.2
        if rng.random() < 0.03:
            said = special(rng, folder / source.name, data)
            return reading(rng, folder, source, b"", said, same=True, write=False)
        if legacy:
            buffer = io.BytesIO()
            torch.save(content(source), buffer, _use_new_zipfile_serialization=False)
            data = buffer.getvalue()
        data, said = flipped(rng, data, places=600 if legacy or rng.random() < 0.3 else 0)
        return reading(rng, folder, source, data, f"{'in the old format, ' if legacy else ''}{said}", same=not legacy)

    def records(rng: Random, folder: Path) -> Attempt:
        source = rng.choice(files)
        if rng.random() < 0.02:
            path = folder / source.name
            path.symlink_to(seeds.folder / "bomb.zip")
            return Attempt(
                lambda: lowbit.load(path), f"{source.name}: a record of 1.25 GB of zeros", 10**7, must="refuse"
            )
        data, said = rewritten(rng, source.read_bytes())
        return reading(rng, folder, source, data, said, same=False)

    def contents(rng: Random, folder: Path) -> Attempt:
        source = rng.choice(files)
        tree, said, refused = authored(rng, content(source), spared=partial(beside, content(source)))
        data = saved(tree)
        given = reading(rng, folder, source, data, said, same=False)
        return replace(given, must="refuse" if refused else "")

    def resumed(rng: Random, folder: Path) -> Attempt:
        method = rng.choice([method for method in seeds.methods if method.resumes])
        name = rng.choice([*method.resumes])
        tree, said, refused = authored_run(rng, content(seeds.folder / name))
        path = folder / "checkpoint.pth.tar"
        path.write_bytes(saved(tree))
        out = folder.parent / "out"
        line = [*seeds.line(method.resumes[name]), "--resume", str(path), "--output", str(out)]

        def check(result: object) -> str | None:
            then = content(seeds.folder / f"{name}.end")
            now = torch.load(out / method.makes[name][1], weights_only=True)
            return unequal(now["state_dict"], then["state_dict"])

        shown = f"{method.program} {line[0]} --resume {name}: {said}"
        return Attempt(lambda: run(method, line), shown, path.stat().st_size, check, "refuse" if refused else "")

    def reading(
        rng: Random, folder: Path, source: Path, data: bytes, said: str, same: bool, write: bool = True
    ) -> Attempt:
        path = folder / source.name
        if write:
            path.write_bytes(data)
        command = choose_line(seeds, rng, source.name) if rng.random() < 0.25 else None
        if command is not None:
            method, text = command
            line = seeds.line(text, FILE=path)
            shown = f"{method.program} {line[0]} {source.name}: {said}"
            return Attempt(lambda: run(method, line), shown, len(data), writes=False)

        def check(net: nn.Module) -> str | None:
            if same:
                return other_net(net, good_net(source))
            with torch.serialization.safe_globals(list(HARMLESS)):
                return not_of_file(net, torch.load(path, map_location="cpu", weights_only=True), slices=slices(source))

        return Attempt(lambda: lowbit.load(path), f"lowbit.load {source.name}: {said}", len(data), check)

    def slices(source: Path) -> bool:
        return any(method.slices and source.name.startswith(method.program) for method in seeds.methods)

    return (
        Kind("checkpoint bytes", bytes_),
        Kind("checkpoint records", records),
        Kind("checkpoint content", contents),
        Kind("resumed checkpoint", resumed),
    )


def prepare(seeds: Seeds) -> None:
    """The file that is costly to make."""
    bomb(seeds.folder / "bomb.zip", seeds.of(".pth.tar")[0].read_bytes())


def choose_line(seeds: Seeds, rng: Random, name: str) -> tuple[Method, str] | None:
    """A command that reads a file of this name."""
    found = [
        (method, line)
        for method in seeds.methods
        for part, lines in method.reads.items()
        if part in name
        for line in lines
    ]
    return rng.choice(found) if found else None


@cache
def content(path: Path) -> dict[str, Any]:
    """What a good file holds."""
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


@cache
def good_net(path: Path) -> nn.Module:
    """The net of a good file."""
    return lowbit.load(path)


def beside(tree: Mapping[str, Any], key: str) -> bool:
    """Whether a tensor is of what stands beside the online encoder, such as its momentum copy: nobody reads it."""
    return not key.startswith(ONLINE) and any(name.startswith(ONLINE) for name in tree.get("state_dict", ()))


def saved(tree: Any) -> bytes:
    """The bytes of a file of torch.save; where a value cannot be saved at all, of one without it."""
    buffer = io.BytesIO()
    try:
        torch.save(tree, buffer)
    except Exception:
        buffer = io.BytesIO()
        torch.save({"state_dict": {}}, buffer)
    return buffer.getvalue()


def authored_run(rng: Random, tree: dict[str, Any]) -> tuple[Any, str, bool]:
    """A changed checkpoint of a run: in the half of cases what the run itself noted, else any place."""
    notes = {key: value for key, value in tree.items() if key in ("position", "step", "run", "optimizer", "ranks")}
    if rng.random() < 0.6:
        changed, said, _ = authored(rng, notes)
        return {**tree, **changed}, said, False
    while True:  # changed weights that are weights still would give another result, rightly
        changed, said, refused = authored(rng, tree)
        if refused or not any(
            word in said for word in (" as half", " as double", "weight", "bias", "running", "queue")
        ):
            return changed, said, refused


def unequal(now: Mapping[str, Tensor], then: Mapping[str, Tensor]) -> str | None:
    """The first tensor that is not as it was."""
    if now.keys() != then.keys():
        return f"other tensors: {sorted({*now} ^ {*then})[:2]}"
    names = (
        name for name, value in then.items() if value.shape != now[name].shape or not torch.equal(value, now[name])
    )
    name = next(names, None)
    return None if name is None else f"{name} is not what an undamaged file gives"


def other_net(net: nn.Module, good: nn.Module) -> str | None:
    """Whether a net is not the good one."""
    if repr(net) != repr(good):
        return "another net than that of the undamaged file"
    return unequal(net.state_dict(), good.state_dict())


def not_of_file(net: nn.Module, tree: Any, slices: bool = False) -> str | None:
    """The first tensor of a net that is not in the file, or was converted from another kind of number.

    Args:
        net: that was read.
        tree: what the file holds.
        slices: tensors may be leading parts of the file's, and batch norms one of a list (`bn.0`, `bn.1`).
    """
    state = tree.get("state_dict", tree) if isinstance(tree, Mapping) else {}
    if not isinstance(state, Mapping):
        return "a net out of a file without a state_dict"
    for name, ours in net.state_dict().items():
        found = [state[stem + name] for stem in STEMS if stem + name in state]
        if slices:
            found = [leading(one, ours) for one in [*found, *of_list(state, name)]]
        theirs = next((one for one in found if same(one, ours)), found[0] if found else None)
        if theirs is None and not name.endswith(LACKED):
            return f"{name} is not in the file"
        if not isinstance(theirs, Tensor) or theirs.layout != torch.strided:
            continue
        if theirs.is_floating_point() != ours.is_floating_point() or theirs.is_complex():
            return f"{name} holds {theirs.dtype} in the file"
        if not same(theirs, ours):
            return f"{name} is not as in the file"
        if ours.is_floating_point() and not bool(torch.isfinite(ours).all()):
            return f"{name} is not finite"
    return None


def same(theirs: Any, ours: Tensor) -> bool:
    """Whether the file's tensor holds a net's values."""
    if not isinstance(theirs, Tensor) or theirs.layout != torch.strided or theirs.shape != ours.shape:
        return False
    return torch.equal(theirs.detach().to(ours.dtype), ours)


def of_list(state: Mapping[Any, Any], name: str) -> list[Any]:
    """The entries of a switchable batch norm for a batch norm's name."""
    module, _, last = name.rpartition(".")
    wanted = re.compile(rf"({'|'.join(map(re.escape, STEMS))}){re.escape(module)}\.bn\.\d+\.{last}")
    return [value for key, value in state.items() if isinstance(key, str) and wanted.fullmatch(key)]


def leading(theirs: Any, ours: Tensor) -> Any:
    """The part of the file's tensor that has a net's shape; itself where there is none."""
    if not isinstance(theirs, Tensor) or theirs.layout != torch.strided or theirs.dim() != ours.dim():
        return theirs
    return theirs[tuple(map(slice, ours.shape))]
