"""Values that nobody expects, and trees of values with one of them in some place."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from random import Random
from typing import Any

import torch
from torch import Tensor

NUMBERS: tuple[Any, ...] = (
    -1, 0, 1, 2, 3, 5, 17, 255, 4097, 2**31, 2**63, 2**64, 10**20, -(10**20), 10**400, 10**9, True, False,
    0.5, -0.0, 1e-320, 1e308, math.nan, math.inf, -math.inf, 3.0, 1j,
)  # fmt: skip
TEXTS = (
    "", " ", "a" * 300, "a" * 100_000, "\0", "\n\n", "a\nb", "../../x", "/dev/zero", "/dev/stdin", "~", "~root", "é☃😀",
    "\ud800", "%s%n", "{}", "nan", "1e999", "0x10", "True", "None", "[]", "resnet18.nosuchtag", "resnet18", "vit_tiny",
    "hf_hub:x/y", "__import__('os').system('true')", "\x1b[31m", "bsq", "ssql", "cifar_resnet8_1x1", "-1", "1_000",
)  # fmt: skip


def nested(levels: int) -> list[Any]:
    """Lists in lists."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def shared(levels: int) -> list[Any]:
    """Lists that hold one list twice, level over level: small in a file, 2^levels when walked."""
    found: list[Any] = []
    for _ in range(levels):
        found = [found, found]
    return found


def cycle() -> Any:
    """A dict that holds itself."""
    found: dict[str, Any] = {}
    found["again"] = [found]
    return found


CONTAINERS: tuple[Callable[[], Any], ...] = (
    list, dict, tuple, OrderedDict, cycle, lambda: nested(100), lambda: nested(900), lambda: shared(34),
    lambda: [None] * 10_000, lambda: {1: 2}, lambda: {None: None}, lambda: {(1, 2): 3}, lambda: [1, "a", None],
    lambda: {"": ""}, lambda: {"a" * 1000: 1}, lambda: range(3), lambda: b"bytes", lambda: {"w": 4, "a": 4},
)  # fmt: skip


def _float8() -> Tensor:
    return torch.zeros(3).to(torch.float8_e4m3fn)


TENSORS: dict[str, Callable[[], Tensor]] = {
    "an empty tensor": lambda: torch.zeros(0),
    "a scalar tensor": lambda: torch.tensor(1.0),
    "an expanded tensor": lambda: torch.zeros(1).expand(10**12),
    "an expanded scalar of 4 dimensions": lambda: torch.zeros(1, 1, 1, 1).expand(4096, 4096, 64, 64),
    "a meta tensor": lambda: torch.zeros(2, 2, device="meta"),
    "a float8 tensor": _float8,
    "a sparse tensor": lambda: torch.eye(3).to_sparse(),
    "a huge sparse tensor": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**6, 10**6)),
    "a CSR tensor": lambda: torch.eye(3).to_sparse_csr(),
    "a parameter": lambda: torch.nn.Parameter(torch.ones(2)),
    "NaN": lambda: torch.tensor([math.nan]),
    "integers": lambda: torch.tensor([1, 2, 3]),
    "a quantized tensor": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


def value(rng: Random) -> tuple[Any, str]:
    """A value, and what it is in words."""
    sort = rng.randrange(5)
    if sort == 0:
        number = rng.choice(NUMBERS)
        return number, f"{number!r}"[:60]
    if sort == 1:
        text = rng.choice(TEXTS)
        return text, f"{text!r}"[:60]
    if sort == 2:
        position = rng.randrange(len(CONTAINERS))
        return CONTAINERS[position](), f"container {position}"
    if sort == 3:
        name = rng.choice([*TENSORS])
        return TENSORS[name](), name
    return None, "None"


SHAPES = ("one row more", "flattened", "one row less")  # ways that leave a tensor's numbers as they are


def like(rng: Random, old: Tensor) -> tuple[Tensor, str, bool]:
    """A tensor in the place of another: it, what was done, and whether no reader may accept it for floats."""
    spoiled = old.detach().clone()
    ways: dict[str, Callable[[], Tensor]] = {
        "NaN": lambda: _set(spoiled, math.nan),
        "infinity": lambda: _set(spoiled, -math.inf),
        "int64": lambda: old.long(),
        "int8": lambda: old.to(torch.int8),
        "bool": lambda: old.bool(),
        "complex64": lambda: old.to(torch.complex64),
        "float8": lambda: old.to(torch.float8_e5m2),
        "meta": lambda: old.to("meta"),
        "one row more": lambda: torch.cat([old, old[:1]]) if old.dim() else old.reshape(1, 1),
        "flattened": lambda: old.reshape(1, -1),
        "one row less": lambda: old[1:] if old.dim() else old.reshape(1),
        "sparse": lambda: old.to_sparse() if old.dim() else old.reshape(1, 1, 1),
        "half": lambda: old.half(),
        "double": lambda: old.double(),
        "a parameter": lambda: torch.nn.Parameter(old) if old.is_floating_point() else old,
        "transposed in memory": lambda: old.transpose(0, -1).contiguous().transpose(0, -1) if old.dim() else old,
    }
    name = rng.choice([*ways])
    refused = name not in ("half", "double", "a parameter", "transposed in memory") and old.is_floating_point()
    return ways[name](), name, refused and old.numel() > 0


def _set(tensor: Tensor, number: float) -> Tensor:
    if tensor.is_floating_point() and tensor.numel():
        tensor.view(-1)[tensor.numel() // 2] = number
    return tensor


def places(tree: Any, depth: int = 7) -> Iterator[tuple[Any, Any]]:
    """(container, key) of every entry of nested dicts and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in list(entries):
        yield tree, key
        if depth:
            yield from places(inner, depth - 1)


def authored(rng: Random, content: Any, spared: Callable[[str], bool] = lambda key: False) -> tuple[Any, str, bool]:
    """A copy of a tree with one or two places changed: it, how in words, whether a weight in it may not be accepted.

    Args:
        rng: of the changes.
        content: the tree.
        spared: whether a weight's shape does not matter, as in a momentum copy where the online net is read.
    """
    tree, said, refused = deepcopy(content), [], False
    for _ in range(1 if rng.random() < 0.8 else 2):
        found = [*places(tree)]
        if not found:
            break
        plain = [(at, key) for at, key in found if not isinstance(at[key], Tensor)]
        at, key = rng.choice(plain if plain and rng.random() < 0.6 else found)
        old, name = at[key], f"{key!r}"[:80]
        is_weight = isinstance(old, Tensor) and isinstance(key, str) and key.endswith(("weight", "running_mean"))
        way = rng.randrange(8)
        if way == 0:
            del at[key]
            said.append(f"without {name}")
        elif way == 1 and isinstance(at, dict):
            other: Any = rng.choice([1, None, (1, 2), "", f"module.{key}", f"{key}x", "a" * 500, 1.5, b"k"])
            at[other] = at.pop(key)
            said.append(f"{name} renamed {other!r}"[:200])
        elif way == 2 and isinstance(at, dict):
            new, words = value(rng)
            other = rng.choice(["more", f"module.{key}", 7, None, "package", "format", "run", "state_dict"])
            at[other] = new
            said.append(f"{other!r} = {words} beside {name}"[:200])
        elif way < 6 and isinstance(old, Tensor):
            at[key], words, never = like(rng, old)
            refused |= never and is_weight and not (words in SHAPES and spared(key))
            said.append(f"{name} as {words}")
        else:
            at[key], words = value(rng)
            said.append(f"{name} = {words}")
    return tree, "; ".join(said), refused
