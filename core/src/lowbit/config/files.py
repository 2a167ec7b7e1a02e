"""Finding and reading config files: safe YAML, where a name is looked for, and the chain of `BASE_CONFIG`."""

import difflib
from pathlib import Path
from typing import Any

import yaml

from lowbit.errors import InputError, one_line

BASE = "BASE_CONFIG"
MAX_BYTES = 1 << 20
Given = tuple[str, dict[str, Any]]  # where some values are from, and the values, nested


class StrictLoader(yaml.SafeLoader):
    """Safe YAML (plain values, no objects) in which a key may stand once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping; a key that stands twice is an error (YAML's own readers let the last one win)."""
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value!r}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # no right to look, a name too long, a zero byte
        return False


def locate(name: str | Path, shipped: Path, beside: Path) -> Path:
    """The file of a name: beside a file, in the working folder, else what follows `configs/` among the shipped ones.

    Raises:
        InputError: nowhere; says where it was looked for, and which shipped names are near.
    """
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
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"config {path} has more than {MAX_BYTES} bytes; give a YAML file of settings")
        values = yaml.load(path.read_bytes(), Loader=StrictLoader)
    except OSError as error:
        raise InputError(f"config {path} cannot be read: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = one_line(f"{error.context or ''} {error.problem or error}")
        raise InputError(f"config {path}{where}: not usable as YAML: {problem}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
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
