"""Strict YAML to a typed, frozen config: the mechanism. Each method owns its tree of keys (`ssql.config.Config`).

A config is resolved from layers, the later ones winning: the command's defaults, the files of the `BASE_CONFIG` chain
(the base first), `KEY.PATH=VALUE` arguments, explicit flags. Sections are merged key by key, everything else is
replaced whole. Deviations from the yacs of the original programs: flags win over the YAML instead of losing to it,
there are arguments, whole numbers are taken where a float is wanted, and every value is checked.

No torch here, so that a command can check its config before anything heavy is loaded.
"""

import ast
import difflib
import logging
import os
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lowbit.config.files import BASE, Given, StrictLoader, chain, locate, one_line
from lowbit.errors import InputError

MAX_DEPTH, MAX_VALUES = 20, 100_000  # of one value: YAML aliases may multiply without end
log = logging.getLogger(__name__)


class Node(BaseModel):
    """A section of a tree: unknown keys and wrong types are errors, values do not change. Sequences are tuples."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Tree = TypeVar("Tree", bound=Node)


def load_config(
    tree: type[Tree],
    name: str | Path,
    overrides: Sequence[str] = (),
    *,
    shipped: str | Path,
    dead: Collection[str] | Callable[[Tree], Collection[str]] = (),
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Tree:
    """Read and check a config.

    Args:
        tree: the root model; sections are `Node`s with default values.
        name: a YAML file, or a name of the shipped configs, with anything up to `configs/` before it.
        overrides: `KEY.PATH=VALUE` arguments; Python or YAML literals, text where the key holds text.
        shipped: folder of the shipped configs, or the import package that holds them in `configs/`.
        dead: keys (or whole sections) without effect, or a function of the config that tells them; where a file or an
            argument sets one, a single warning lists them.
        flags: explicitly given command line options by key; they win over everything.
        defaults: the command's own defaults by key; they win over the tree's alone.

    Returns:
        The frozen config. `model_fields_set` of a section tells which keys were set by any layer.

    Raises:
        InputError: a file that is missing, damaged or not a mapping; duplicate or unknown keys; a wrong value; a chain
            that comes back to itself; an argument that is not `KEY.PATH=VALUE`, or two that disagree.
    """
    folder = Path(str(files(shipped))) / "configs" if isinstance(shipped, str) else shipped
    layers: list[Given] = [("the command's defaults", _nested(defaults or {}))]
    layers += chain(locate(name, folder, Path()), folder)
    layers += _overrides(tree, overrides)
    layers += [(f"the option for {key}", _nested({key: value})) for key, value in (flags or {}).items()]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, values in layers:
        _merge(merged, values, tree, "", origin, origins)
    try:
        config = tree.model_validate(merged)
    except ValidationError as error:
        raise InputError(_explain(error, tree, origins)) from None
    without_effect = dead(config) if callable(dead) else dead
    quiet = {layers[0][0], *(f"the option for {key}" for key in flags or {})}
    ours = (key for key, origin in origins.items() if origin not in quiet)
    idle = [key for key in ours if any(key == one or key.startswith(f"{one}.") for one in without_effect)]
    if idle and os.environ.get("RANK", "0") == "0":  # the processes of a run have not met yet; they read the same
        log.warning("config %s sets keys that have no effect in this command: %s", name, ", ".join(idle))
    return config


def dump_config(config: BaseModel) -> dict[str, Any]:
    """The resolved config as plain JSON values, nested by section; reading it back gives an equal config."""
    return config.model_dump(mode="json")


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a tree by its full path, sections left out."""
    for key, field in tree.model_fields.items():
        if _is_section(field.annotation):
            yield from leaves(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key


# --------------------------------------------------------------------------------------------------------- values


def _is_section(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _holds_text(annotation: Any) -> bool:
    """Whether the only type but None is `str`, so that text which looks like a number stays text."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    members = set(typing.get_args(annotation)) if union else {annotation}
    return members - {type(None)} == {str}


def _literal(text: str) -> Any:
    """What Python reads in a string, else the string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the syntax of what is not Python
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def _decode(value: Any, annotation: Any) -> Any:
    """A value of a file: strings by `ast.literal_eval` first, text kept where the key holds text, lists to tuples."""
    if isinstance(value, str) and _holds_text(annotation):
        decoded = _literal(value)
        return decoded if isinstance(decoded, str | None) else value
    count = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise InputError("a config value is nested too deeply or holds too many values; check its YAML aliases")
        value = _literal(value) if isinstance(value, str) else value
        if isinstance(value, dict):
            return {str(key): plain(one, depth + 1) for key, one in value.items()}
        return tuple(plain(one, depth + 1) for one in value) if isinstance(value, list | tuple) else value

    return plain(value, 0)


def _merge(
    into: dict[str, Any], values: Mapping[Any, Any], tree: Any, prefix: str, origin: str, origins: dict[str, str]
) -> None:
    """Lay `values` over `into`; `origins` notes, by full key, where each value is from."""
    for key, value in values.items():
        name = str(key)
        field = tree.model_fields.get(name)
        annotation = field.annotation if field else None
        if _is_section(annotation) and isinstance(value, Mapping):
            section = into.get(name)
            into[name] = section if isinstance(section, dict) else {}
            _merge(into[name], value, annotation, f"{prefix}{name}.", origin, origins)
        else:
            into[name] = _decode(value, annotation)
            origins.pop(prefix + name, None)  # the last to set a key is also the last in order
            origins[prefix + name] = origin


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"A.B": 1}` as `{"A": {"B": 1}}`."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *sections, key = path.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return nested


def _overrides(tree: type[BaseModel], arguments: Sequence[str]) -> list[Given]:
    """Each `KEY.PATH=VALUE` as a layer.

    Raises:
        InputError: not of that form, an unknown key, or two that disagree.
    """
    layers: list[Given] = []
    given: dict[str, str] = {}
    for argument in arguments:
        path, equals, text = argument.partition("=")
        path = path.strip()
        if not equals or not path:
            raise InputError(f"{argument!r} is not of the form KEY.PATH=VALUE, for example TRAIN.EPOCHS=100")
        if path == BASE:
            raise InputError(f"{argument!r}: {BASE} can only stand in a file; give that file as the config")
        if given.setdefault(path, text) != text:
            raise InputError(f"{path}={given[path]} and {argument} disagree; give one of them")
        layers.append((f"argument {argument}", _nested({path: _argument(text, _annotation(tree, path))})))
    return layers


def _annotation(tree: type[BaseModel], path: str) -> Any:
    annotation: Any = tree
    for key in path.split("."):
        field = annotation.model_fields.get(key) if _is_section(annotation) else None
        if field is None:
            raise InputError(f"argument {path}=...: {_unknown(path, tree)}")
        annotation = field.annotation
    return annotation


def _argument(text: str, annotation: Any) -> Any:
    """The value of an argument: a Python literal, else what YAML reads in it, else the text itself."""
    value = _literal(text)
    if _holds_text(annotation) or value != text:
        return text if _holds_text(annotation) else value
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


# ------------------------------------------------------------------------------------------------------- messages


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _unknown(path: str, tree: type[BaseModel]) -> str:
    """Names the key whose path, and above all whose last part, is nearest."""

    def likeness(known: str) -> float:
        pairs = ((path, known), (path.rpartition(".")[2], known.rpartition(".")[2]))
        return sum(difflib.SequenceMatcher(None, a.upper(), b.upper()).ratio() for a, b in pairs)

    return f"unknown key {path!r}; the nearest known key is {max(leaves(tree), key=likeness)!r}"


def _explain(error: ValidationError, tree: type[BaseModel], origins: Mapping[str, str]) -> str:
    """The first thing wrong, in one line: where it is from, the key, the value, what is allowed."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    parts = [str(part) for part in first["loc"] if part != "[key]"]
    path = ".".join(parts)
    origin = next((origins[key] for i in range(len(parts), 0, -1) if (key := ".".join(parts[:i])) in origins), "")
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    if first["type"] == "extra_forbidden":
        message = _unknown(path, tree)
    elif first["type"] in ("model_type", "model_attributes_type"):
        keys = ", ".join(_annotation(tree, path).model_fields)
        message = f"{path}={_short(first['input'])} should be a section with keys of {keys}"
    elif first["type"] == "missing":  # of a tuple; keys have defaults
        message = f"{'.'.join(parts[:-1])}={_short(first['input'])} should have more values"
    elif parts:
        message = f"{path}={_short(first['input'])} {message}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return one_line(f"{origin}: {message}{more}" if origin else f"{message}{more}")
