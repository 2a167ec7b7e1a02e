"""Exports: packed files and backbones; bytes, headers, and what they say of themselves."""

import json
import math
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch
from tools.attacks.checkpoints import choose_line, good_net, other_net
from tools.attacks.damage import flipped, special
from tools.attacks.method import Seeds, run
from tools.attacks.outcome import Attempt, Kind
from tools.attacks.values import authored, like, nested
from torch import Tensor, nn

import lowbit
from lowbit.export.codes import KEY, checksum

Parts = tuple[dict[str, Any], bytes]  # the header, and the data behind it


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """Those of exports."""
    files = seeds.of(".safetensors")

    def bytes_(rng: Random, folder: Path) -> Attempt:
        source = rng.choice(files)
        data = source.read_bytes()
        data, said = flipped(rng, data, places=rng.choice((0, 16, 8 + int.from_bytes(data[:8], "little"))))
        path = folder / source.name
        if rng.random() < 0.04:
            said = special(rng, path, source.read_bytes())
        else:
            path.write_bytes(data)
        return Attempt(
            lambda: lowbit.load(path),
            f"lowbit.load {source.name}: {said}",
            len(data),
            lambda net: other_net(net, good_net(source)),
        )

    def contents(rng: Random, folder: Path) -> Attempt:
        source = rng.choice(files)
        way = rng.randrange(4)
        refused = False
        if way == 0:
            data, said = with_header(rng, *cut(source))
        elif way == 1 and "packed" in source.name:
            data, said = with_head(rng, source)
        elif way == 2:
            data, said = with_metadata(rng, *cut(source))
        else:
            data, said, refused = with_tensor(rng, source)
        path = folder / source.name
        path.write_bytes(data)
        command = choose_line(seeds, rng, source.name) if rng.random() < 0.3 else None
        must = "refuse" if refused else ""
        if command is not None:
            method, text = command
            shown = f"{method.program} {text.split()[0]} {source.name}: {said}"
            line = seeds.line(text, FILE=path)
            return Attempt(lambda: run(method, line), shown, len(data), must=must, writes=False)
        return Attempt(lambda: lowbit.load(path), f"lowbit.load {source.name}: {said}", len(data), unusable, must)

    return (Kind("export bytes", bytes_), Kind("export content", contents))


@cache
def cut(path: Path) -> Parts:
    """A file as its header and its data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: str, data: bytes) -> bytes:
    """The bytes of a file."""
    said = header.encode(errors="replace")
    said += b" " * (-len(said) % 8)
    return len(said).to_bytes(8, "little") + said + data


def with_header(rng: Random, header: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    """A changed header: other types, shapes, offsets, entries."""
    tree, said, _ = authored(rng, header)
    return join(json.dumps(tree, default=str, skipkeys=True) if not cyclic(tree) else '{"a":' * 5000, data), said


def with_metadata(rng: Random, header: dict[str, Any], data: bytes) -> tuple[bytes, str]:
    """Other text in the place of what a file says of itself."""
    texts = ["", "{}", "[]", "null", "1", '"x"', "[" * 100_000, '{"arch":' * 5000, '{"arch": 5}', '{"arch": null}',
             '{"arch": ["a"]}', '{"arch": {}}', '{"arch": "resnet18.nosuchtag"}', '{"arch": "vit_base_patch16_224"}',
             '{"arch": NaN}', '{"arch": "' + "a" * 10_000 + '"}', '{"format": 2}', "9" * 5000,
             "NaN", '{"a": 1e999}']  # fmt: skip
    text = rng.choice(texts)
    (key,) = header["__metadata__"]
    changed = {**header, "__metadata__": {key: text} if rng.random() < 0.8 else {"format": "pt", f"{key}x": text}}
    return join(json.dumps(changed), data), f"metadata {text[:40]!r} of {len(text)} characters"


def with_head(rng: Random, path: Path) -> tuple[bytes, str]:
    """A packed file whose head is changed, with the checksum of that."""
    header, data = cut(path)
    head, said, _ = authored(rng, json.loads(header["__metadata__"][KEY]))
    if not isinstance(head, dict) or cyclic(head):
        head, said = {"format": 2, "recipe": nested(500)}, "lists 500 levels deep"
    tensors = safetensors.torch.load(path.read_bytes())
    text = json.dumps(head, default=str, skipkeys=True)
    head = json.loads(text)
    head["crc"] = checksum(head, tensors)
    header = {**header, "__metadata__": {KEY: json.dumps(head)}}
    return join(json.dumps(header), data), f"head: {said}, checksum right"


def with_tensor(rng: Random, path: Path) -> tuple[bytes, str, bool]:
    """A file with one tensor changed; of a backbone as the file of somebody else, which has no checksum."""
    header, _ = cut(path)
    tensors = safetensors.torch.load(path.read_bytes())
    name = rng.choice([*tensors])
    changed, said, refused = like(rng, tensors[name])
    try:
        metadata = header["__metadata__"] if rng.random() < 0.6 or "packed" in path.name else None
        data = safetensors.torch.save({**tensors, name: changed.contiguous()}, metadata)
    except Exception:
        return path.read_bytes(), "as it is", False
    same = changed.dtype == tensors[name].dtype and torch.equal(changed, tensors[name])
    ours = metadata and "packed" not in path.name  # whose checksum is over types and shapes, too
    never = not same if ours else refused and name.endswith("weight")
    return data, f"{name} as {said}{'' if metadata else ', no metadata'}", never


def cyclic(tree: Any) -> bool:
    """Whether JSON cannot hold it, or only at an immense length."""

    def count(value: Any, left: int, depth: int) -> int:
        if depth > 950 or left < 0:
            return -1
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        for one in inner:
            left = count(one, left - 1, depth + 1)
            if left < 0:
                return -1
        return left

    return count(tree, 100_000, 0) < 0


def unusable(net: nn.Module) -> str | None:
    """A tensor that is not finite."""
    state: dict[str, Tensor] = net.state_dict()
    found = (name for name, value in state.items() if not math.isfinite(value.double().abs().sum().item()))
    name = next(found, None)
    return None if name is None else f"{name} is not finite"
