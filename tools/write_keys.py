"""Write the page of all keys of each method with a YAML config, `<method>/KEYS.md`, from its tree of keys.

Usage: python tools/write_keys.py [--check]   (--check writes nothing; exit 1 where a page is not what it should be)

Meanings are the comments beside the keys in `lowbit.config.keys` and in the method's `config.py`, and the docstrings of
the sections.
"""

import argparse
import ast
import importlib
import inspect
import io
import sys
import textwrap
import tokenize
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from lowbit.config.keys.root import NOWHERE
from lowbit.config.tree import dump_config, is_section
from lowbit.config.unused import is_unused, paths
from lowbit.options import MOST

ROOT = Path(__file__).resolve().parent.parent
METHODS = ("ssql", "us3l")
HEAD = """# All keys of a config of {method}

`python tools/write_keys.py` writes this page from the tree of keys; edit the sources, not the page. A key stands in a
YAML file, or behind a command as `KEY.PATH=VALUE`. Names and defaults are the authors'; "ours" marks keys that they do
not have. Keys without effect in every command are accepted, so that the authors' files are read, and one warning names
them.
"""
BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
WORDS = {int: "whole number", float: "number", str: "text", bool: "True, False", Any: "anything"}


def comments(section: type[BaseModel]) -> dict[str, str]:
    """The comment beside each key that a class itself defines."""
    source = textwrap.dedent(inspect.getsource(section))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    keys = [node for node in body.body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)]
    said = {node.target.id: found.get(node.end_lineno or 0, "") for node in keys if isinstance(node.target, ast.Name)}
    return {
        key: "" if text.startswith(("noqa", "fmt")) else text.partition("  # noqa")[0] for key, text in said.items()
    }


def meanings(section: type[BaseModel]) -> dict[str, str]:
    """Likewise, of the classes that it is made of too."""
    classes = [one for one in reversed(section.__mro__) if issubclass(one, BaseModel) and one is not BaseModel]
    return {key: text for one in classes for key, text in comments(one).items()}


def allowed(annotation: Any, bounds: typing.Sequence[Any] = ()) -> str:
    """What a key may hold, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return allowed(arguments[0], [limit for one in arguments[1:] for limit in getattr(one, "metadata", [one])])
    if origin is typing.Literal:
        return ", ".join('""' if value == "" else str(value) for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return ", or ".join("None" if one is type(None) else allowed(one) for one in arguments)
    if origin is tuple:
        inner = list(dict.fromkeys(allowed(one) for one in arguments if one is not Ellipsis))
        return f"{'a list' if Ellipsis in arguments else len(arguments)} of: {'; '.join(inner)}"
    if origin is dict:
        return "a mapping"
    limits = [(BOUNDS[name], getattr(one, name)) for one in bounds for name in BOUNDS if hasattr(one, name)]
    said = ", ".join(f"{word} {value:,}" for word, value in limits if value < MOST)
    return f"{WORDS[annotation]} {said}".strip()


def shown(value: Any) -> str:
    """A default."""
    return '`""`' if value == "" else f"`{value}`"


def section_lines(section: type[BaseModel], prefix: str, unused: set[str]) -> Iterator[str]:
    """A table of the keys of a section, then its sections."""
    said, inner = meanings(section), []
    yield f"\n## {prefix.rstrip('.') or 'Without a section'}\n\n{inspect.getdoc(section)}\n"
    rows = []
    for key, field in section.model_fields.items():
        path = prefix + key
        if is_section(field.annotation):
            inner.append((field.annotation, f"{path}."))
            continue
        meaning = "without effect" if is_unused(path, unused) else said.get(key, "")
        default = field.get_default(call_default_factory=True)
        default = default if isinstance(default, str | int | float | dict | None) else list(default)
        values = allowed(field.annotation, field.metadata).replace("|", "\\|")
        rows.append(f"| `{path}` | {shown(default)} | {values} | {meaning} |")
    yield from ["| key | default | allowed | meaning |", "|---|---|---|---|", *rows] if rows else []
    for one, path in inner:
        yield from section_lines(one, path, unused)


def page(method: str) -> str:
    """The page of a method."""
    tree = importlib.import_module(f"{method}.config").Config
    unused = paths(NOWHERE) | paths(importlib.import_module(f"{method}.unused_keys").EVERYWHERE)
    assert dump_config(tree())  # every key has a default
    return HEAD.format(method=method) + "\n".join(section_lines(tree, "", unused)) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Write, or check."""
    parser = argparse.ArgumentParser(description="Write the pages of all keys.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a page is out of date")
    check = parser.parse_args(arguments).check
    stale = 0
    for method in METHODS:
        path, text = ROOT / method / "KEYS.md", page(method)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            stale += 1
            print(f"{path.relative_to(ROOT)}: {'out of date' if check else 'written'}")
            if not check:
                path.write_text(text, encoding="utf-8")
    return int(check and stale > 0)


if __name__ == "__main__":
    sys.exit(main())
