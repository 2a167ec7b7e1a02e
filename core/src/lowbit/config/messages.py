"""What is wrong with a config, in one line: where it is from, the key, the value, what is allowed."""

import difflib
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from lowbit.config.tree import annotation_of, leaves
from lowbit.errors import MOST, one_line


def unknown(path: str, tree: type[BaseModel]) -> str:
    """Names the key whose path, and above all whose last part, is nearest."""
    start = path[:MOST]

    def likeness(known: str) -> float:
        pairs = ((start, known), (start.rpartition(".")[2], known.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, a.upper(), b.upper()).ratio() for a, b in pairs)

    return f"unknown key {short(path)}; the nearest known key is {max(leaves(tree), key=likeness)!r}"


def explain(error: ValidationError, tree: type[BaseModel], origins: Mapping[str, str]) -> str:
    """The first thing that pydantic found, in words.

    Args:
        error: of validating the tree.
        tree: the root.
        origins: full key -> where its value is from.
    """
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    path = ".".join(parts)
    origin = next((origins[key] for i in range(len(parts), 0, -1) if (key := ".".join(parts[:i])) in origins), "")
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if first["type"] == "extra_forbidden":
        message = unknown(path, tree)
    elif first["type"] in ("model_type", "model_attributes_type"):
        keys = ", ".join(annotation_of(tree, path).model_fields)
        message = f"{path}={short(first['input'])} should be a section with keys of {keys}"
    elif first["type"] == "missing":  # of a tuple; keys have defaults
        message = f"{'.'.join(parts[:-1])}={short(first['input'])} should have more values"
    elif parts:
        message = f"{path}={short(first['input'])} {message}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return one_line(f"{origin}: {message}{more}" if origin else f"{message}{more}")


def short(value: object) -> str:
    """A value as it is written, cut to 80 characters."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
