"""Configs: the shipped ones changed, and YAML that only an attacker writes."""

import reprlib
from functools import cache
from importlib.resources import files
from pathlib import Path
from random import Random
from typing import Any

import yaml
from tools.attacks.damage import flipped, special
from tools.attacks.method import Method, Seeds, run
from tools.attacks.outcome import Attempt, Kind
from tools.attacks.values import NUMBERS, TEXTS, authored

from lowbit.config.tree import leaves

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmnopqr", "bcdefghijklmnopqrs", strict=True))  # fmt: skip  # noqa: E501
AUTHORED = (
    "", "null", "5", "- 1", "text", "a: b: c", "{", "&a [*a]", "a: &a {b: *a}", "TRAIN: &t {EPOCHS: 1, X: *t}", LAUGHS,
    "TRAIN: " + "[" * 3000, "{" * 5000, "? " * 2000, "- " * 3000, "!!python/object/apply:os.system ['true']",
    "TRAIN: !!python/name:os.system", "SEED: !!bool x", "SEED: !!int x", "SEED: !!float x", "SEED: !!timestamp x",
    "SEED: !!binary x", "SEED: 0x" + "f" * 5000, "SEED: " + "9" * 5000, "SEED: 1:60:60:99", "SEED: .nan", "SEED: .inf",
    "SEED: 2001-13-45", "SEED: 2001-01-01", "SEED: 1_0_0", "SEED: 0b" + "1" * 9000, "SEED: 0o7", "SEED: 1e400",
    "<<: {SEED: 1}", "<<: [1, 2]", "<<: 3", "SEED: 1\nSEED: 2", "TRAIN: {EPOCHS: 1}\nTRAIN: {EPOCHS: 2}", "\tSEED: 1",
    "%YAML 9.9\n---\nSEED: 1", "SEED: 1\n---\nSEED: 2", "SEED: *x", "SEED: &x 1\nRANK: *x", "? [a]\n: b", "{[1]: 2}",
    "? {a: b}\n: c", "TRAIN: null", "TRAIN: []", "TRAIN: 3", "MODEL: {ARCH: [a]}", "MODEL: {ARCH: 5}", "1: 2",
    "null: 3", "true: 1", "TRAIN.EPOCHS: 3", "BASE_CONFIG: 3", "BASE_CONFIG: [a]", "BASE_CONFIG: given.yaml",
    "BASE_CONFIG: /dev/zero", "BASE_CONFIG: .", "BASE_CONFIG: base/ssl.yaml", "BASE_CONFIG: '" + "a" * 5000 + "'",
    "BASE_CONFIG: \"\\0\"", "BASE_CONFIG: ../../../../etc/passwd", "BASE_CONFIG: '~/x'", "#" * 100_000, "a" * 100_000,
    "SEED: \"\\ud800\"", "x: " + "[a," * 1000 + "]" * 1000, "SEED: " + "x" * 100_000,
    "AUG: {TRAIN: {RANDOMRESIZEDCROP: {SCALE: '(0.08, 1.0'}}}", "AUG: {TRAIN: {RANDOMRESIZEDCROP: {SCALE: '[' }}}",
    "AUG: {TRAIN: {RANDOMRESIZEDCROP: {SCALE: '" + "(" * 500 + "'}}}",
    "QUANT: {BIT_CONFIG: [{conv1: {w: 8, a: 8}}, {conv1: {w: 8}}]}", "QUANT: {BIT_CONFIG: [{nosuch: {w: 8, a: 8}}]}",
    "QUANT: {BIT_CONFIG: {1: 2}}", "QUANT: {W: {OBSERVER_METHOD: {BINS: 99999999999}}}",
    "TRAIN: {LR_SCHEDULER: {DECAY_MILESTONES: [3, 2, 1]}}", "AUG: {TRAIN: {NORMLIZATION: {MEAN: [1], STD: [1]}}}",
)  # fmt: skip


def kinds(seeds: Seeds) -> tuple[Kind, ...]:
    """That of configs; none where no method has them."""
    methods = [method for method in seeds.methods if method.configs]

    def config(rng: Random, folder: Path) -> Attempt:
        method = rng.choice(methods)
        path = folder / "given.yaml"
        way = rng.randrange(6)
        more: list[str] = []
        source = rng.choice(shipped(method.program))
        text: bytes = source.read_bytes()
        if way == 0:
            text, said = flipped(rng, text)
        elif way == 1:
            authored_text = rng.choice(AUTHORED)
            text, said = authored_text.encode(errors="surrogatepass"), f"{authored_text[:60]!r}"
            text = text.decode(errors="replace").encode("utf-16") if rng.random() < 0.1 else text
        elif way <= 3:
            tree, said, _ = authored(rng, yaml.safe_load(text))
            text = dumped(tree)
        else:
            word = argument(rng, method)
            more, said = [word], f"argument {word[:100]!r}"
        if rng.random() < 0.03:
            said = special(rng, path, text)
        else:
            path.write_bytes(text)
        line = seeds.line(rng.choice(method.configs))
        at = line.index("--config") + 1
        name = str(path) if way <= 3 else line[at]
        if rng.random() < 0.03:
            name = rng.choice(
                ("/dev/zero", str(folder), "/dev/stdin", "a" * 5000, "", "\0", "configs/../base/ssl.yaml")
            )
            said = f"--config {name[:60]!r}"
        line = [*line[:at], name, *line[at + 1 :], *more]
        shown = f"{method.program} {line[0]}, {source.name if way != 1 else 'authored'}: {said}"
        return Attempt(lambda: run(method, line), shown, len(text) + sum(map(len, more)), writes=False)

    return (Kind("config", config),) if methods else ()


@cache
def shipped(program: str) -> list[Path]:
    """A method's own configs."""
    return sorted(Path(str(files(program))).joinpath("configs").rglob("*.yaml"))


def dumped(tree: Any) -> bytes:
    """YAML of any values, those that it does not know as text."""
    try:
        return yaml.safe_dump(tree).encode(errors="replace")
    except Exception:
        return f"TRAIN: {reprlib.repr(tree)}".encode(errors="replace")  # str of shared lists may never end


def argument(rng: Random, method: Method) -> str:
    """KEY=VALUE with a value that nobody expects."""
    from importlib import import_module

    keys = [*leaves(import_module(f"{method.program}.config").Config)]
    costly = ("MODEL.INPUTSHAPE", "MODEL.ARCH", "SSL.SETTING.DIM", "SSL.SETTING.HIDDEN_DIM")
    key = rng.choice([key for key in keys if key not in costly])
    words = [str(number) if abs(number) < 1e30 else "1" + "0" * 400 for number in NUMBERS]
    words += [*TEXTS, "[]", "()", "{}", "(1,", "[1, 2]", "'x'", "lambda: 1", "1 if 1 else 2", "[" * 200, "!!bool x",
              "0x" + "f" * 5000, "9" * 5000, "2**99", "__import__('os')", "1e5000", "[1" + "0" * 400 + "]"]  # fmt: skip
    word = rng.choice(words)
    other = rng.choice([key, key.lower(), f"{key}X", key.rpartition(".")[0], f".{key}", f"{key}.X", key, key, key])
    return (
        f"{other}={word}"
        if rng.random() < 0.95
        else rng.choice([key, "=", "=x", f"{key}==", "BASE_CONFIG=x", "=" * 99])
    )
