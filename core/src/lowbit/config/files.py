"""Finding and reading config files: safe YAML, where a name is looked for, and the chain of `BASE_CONFIG`."""

import difflib
import itertools
import os
from pathlib import Path
from typing import Any

import yaml

from lowbit.errors import InputError, one_line
from lowbit.files import open_regular

BASE = "BASE_CONFIG"
MAX_BYTES, MAX_DIGITS, MAX_VALUES = 1 << 18, 100, 100_000
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
Given = tuple[str, dict[str, Any]]  # where some values are from, and the values, nested


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no right to look, a name too long, a zero byte
        return False


def parse(text: str | bytes) -> Any:
    """What YAML reads in a text.

    Raises:
        yaml.YAMLError: it is none, or holds a value that is not of its tag (`!!bool x`).
    """
    try:
        values = yaml.load(text, Loader=StrictLoader)
        _check_size(values)
        return values
    except RecursionError:
        raise yaml.YAMLError("values are nested too deeply") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of PyYAML's constructors
        raise yaml.YAMLError(f"a value does not fit its tag: {error!r}") from None


def _check_size(values: Any) -> None:
    """Refuse aliases that multiply, or lead back to themselves: walking or printing such values never ends."""
    left, seen = [values], 0
    while left:
        seen += 1
        if seen > MAX_VALUES:
            raise yaml.YAMLError("it is nested too deeply or holds too many values: check its aliases")
        value = left.pop()
        if isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, list | tuple | set):
            left += value


class StrictLoader(yaml.SafeLoader):
    """Safe YAML (plain values, no objects) in which a key may stand once, and whose size a file's size bounds."""

    merged = 0  # values that `<<` has brought

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """A scalar's text; of a number only as long as numbers are (one to the base 60 grows with the square)."""
        if isinstance(node, yaml.ScalarNode) and node.tag in NUMBERS and len(node.value) > MAX_DIGITS:
            problem = f"a number of {len(node.value)} characters"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_scalar(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in what `<<` names, which may multiply at each level."""
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > MAX_VALUES:
            raise yaml.constructor.ConstructorError(None, None, "too many merged values", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a key that stands twice is an error (YAML's own readers let the last one win)."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def describe(folder: Path) -> dict[str, str]:
    """The first sentence of the header of each YAML file under a folder, by its path there.

    Raises:
        InputError: a file without a header of comments.
    """
    found = {}
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: (path.parent, path)):
        lines = itertools.takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
        sentence = " ".join(line.lstrip("# ") for line in lines).partition(". ")[0]
        if not sentence:
            raise InputError(f"config {path} has no header: begin it with a comment that says what it is")
        found[path.relative_to(folder).as_posix()] = sentence.removesuffix(".") + "."
    return found


def locate(name: str | Path, shipped: Path, beside: Path) -> Path:
    """The file of a name: beside a file, in the working folder, else what follows `configs/` among the shipped ones.

    Raises:
        InputError: nowhere; says where it was looked for, and which shipped names are near.
    """
    name = os.path.expanduser(name)  # noqa: PTH111 (Path's own fails where there is no such user)
    places = list(dict.fromkeys([beside / name, Path(name)]))
    parts = [part for part in Path(name).parts if part not in (".", Path(name).anchor)]
    after = [parts[i + 1 :] for i, part in enumerate(parts) if part == "configs"] or [parts]
    own = [shipped.joinpath(*tail) for tail in after if tail and ".." not in tail]
    for place in (*places, *own):
        if _is_file(place):
            return place
    known = sorted(path.relative_to(shipped).as_posix() for path in shipped.rglob("*.yaml"))
    near = difflib.get_close_matches("/".join(after[-1]), known, n=3, cutoff=0.5)
    hint = f"near it: configs/{', configs/'.join(near)}" if near else "give a YAML file"
    looked = ", ".join(map(str, places)) + "".join(f", among the shipped {place}" for place in own)
    raise InputError(f"config {str(name)!r} was not found; looked for {looked}; {hint}")


def read(path: Path) -> dict[str, Any]:
    """One file as nested plain values.

    Raises:
        InputError: unreadable, damaged, with duplicate keys, or not a mapping.
    """
    try:
        with open_regular(path) as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise InputError(f"config {path} has more than {MAX_BYTES} bytes; give a YAML file of settings")
        values = parse(text)
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = one_line(f"{error.context or ''} {error.problem or error}")
        raise InputError(f"config {path}{where}: not usable as YAML: {problem}") from None
    except yaml.YAMLError as error:
        raise InputError(f"config {path}: not usable as YAML: {one_line(error)}") from None
    if not isinstance(values, dict):
        kind = "is empty" if values is None else f"holds a {type(values).__name__}"
        raise InputError(f"config {path} {kind}; it must be a mapping of keys such as 'TRAIN:' to values")
    return values


def chain(path: Path, shipped: Path) -> list[Given]:
    """The files from the last base to `path`, `BASE_CONFIG` taken out.

    Raises:
        InputError: a base that is not text, is missing, or is one of the files it leads to.
    """
    found: list[Given] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            names = " -> ".join(map(str, [*seen, path.resolve()]))
            raise InputError(f"{BASE} comes back to itself: {names}; take it out of one of these files")
        seen.append(path.resolve())
        values = read(path)
        base = values.pop(BASE, None)
        found.insert(0, (str(path), values))
        if base in (None, ""):
            return found
        if not isinstance(base, str):
            raise InputError(f"{path}: {BASE}={base!r} should be the path of one YAML file")
        path = locate(base, shipped, path.parent)
