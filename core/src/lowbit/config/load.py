"""Reading a config: files, `KEY.PATH=VALUE` arguments and flags, laid over each other and checked against a tree.

The later layers win: the command's defaults, the files of the `BASE_CONFIG` chain (the base first), arguments, explicit
flags. Sections are merged key by key, everything else is replaced whole. Deviations from yacs, which the original
programs use: flags win over the YAML instead of losing to it, there are arguments, whole numbers are taken where a
float is wanted, and every value is checked.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lowbit.config import values
from lowbit.config.files import BASE, Given, chain, locate
from lowbit.config.keys.root import DEFAULTS, EXAMPLE
from lowbit.config.messages import explain, short, unknown
from lowbit.config.tree import Node, annotation_of, is_section
from lowbit.config.unused import warn_unused
from lowbit.errors import InputError

Tree = TypeVar("Tree", bound=Node)


def load_config(
    tree: type[Tree],
    name: str | Path,
    overrides: Sequence[str] = (),
    *,
    shipped: str | Path,
    unused: Collection[str] | Callable[[Tree], Collection[str]] = (),
    flags: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Tree:
    """Read and check a config.

    Args:
        tree: the root model; sections are `Node`s with default values.
        name: a YAML file, or a name of the shipped configs, with anything up to `configs/` before it.
        overrides: `KEY.PATH=VALUE` arguments; Python or YAML literals, text where the key holds text.
        shipped: folder of the shipped configs, or the import package that holds them in `configs/`.
        unused: keys (or whole sections) without effect, or a function of the config that gives them; where a file or
            an argument sets one, a single warning lists them.
        flags: explicitly given command line options by key; they win over everything.
        defaults: the command's own defaults by key; they win over the tree's alone.

    Returns:
        The frozen config. `model_fields_set` of a section says which keys were set by any layer.

    Raises:
        InputError: a file that is missing, damaged or not a mapping; duplicate or unknown keys; a wrong value; a chain
            that comes back to itself; an argument that is not `KEY.PATH=VALUE`, or two that disagree.
    """
    folder = Path(str(files(shipped))) / "configs" if isinstance(shipped, str) else shipped
    layers: list[Given] = [("the command's defaults", _nested(defaults or {}))]
    layers += chain(locate(name, folder, Path()), folder)
    layers += _arguments(tree, overrides)
    layers += [(f"the option for {key}", _nested({key: value})) for key, value in (flags or {}).items()]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, given in layers:
        _merge(merged, given, tree, "", origin, origins)
    try:
        config = tree.model_validate(merged)
    except ValidationError as error:
        raise InputError(explain(error, tree, origins)) from None
    quiet = {layers[0][0], *(f"the option for {key}" for key in flags or {})}
    arguments = {origin for origin, _ in layers if origin.startswith("argument ")}
    by = {k: "the command line" if o in arguments else f"config {name}" for k, o in origins.items() if o not in quiet}
    warn_unused(by, unused(config) if callable(unused) else unused)
    return config


def config_reader(
    tree: type[Tree], shipped: str, without_effect: Callable[[Any, Tree, str | None], Collection[str]]
) -> Callable[..., Tree]:
    """How the commands of a method read their configs.

    Args:
        tree: as in `load_config`.
        shipped: import package.
        without_effect: (command, config, what `--sched` says) -> keys, and whole sections, that it does not read.

    Returns:
        `read_config(command, name, overrides=(), flags=None, sched=None)`, whose arguments are those of `load_config`
        and of `without_effect`; `-j`, `-p` and `--output` have the defaults of the authors' command lines.
    """

    def read_config(
        command: str, name: str | Path, overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None,
        sched: str | None = None,
    ) -> Tree:  # fmt: skip
        def unused(config: Tree) -> Collection[str]:
            return without_effect(command, config, sched)

        return load_config(tree, name, overrides, shipped=shipped, unused=unused, flags=flags, defaults=DEFAULTS)

    return read_config


def _merge(
    into: dict[str, Any], given: Mapping[Any, Any], tree: Any, prefix: str, origin: str, origins: dict[str, str]
) -> None:
    """Lay `given` over `into`; `origins` notes, by full key, where each value is from."""
    for key, value in given.items():
        name = key if isinstance(key, str) else str(_plain(key, None, f"{origin}: a key of {prefix or 'the root'}"))
        field = tree.model_fields.get(name)
        annotation = field.annotation if field else None
        if is_section(annotation) and isinstance(value, Mapping):
            section = into.get(name)
            into[name] = section if isinstance(section, dict) else {}
            _merge(into[name], value, annotation, f"{prefix}{name}.", origin, origins)
        else:
            into[name] = _plain(value, annotation, f"{origin}: {prefix}{name}")
            origins.pop(prefix + name, None)  # the last to set a key is also the last in order
            origins[prefix + name] = origin


def _plain(value: Any, annotation: Any, what: str) -> Any:
    try:
        return values.of_file(value, annotation)
    except ValueError as error:
        raise InputError(f"{what} {error}") from None


def _nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """`{"A.B": 1}` as `{"A": {"B": 1}}`."""
    nested: dict[str, Any] = {}
    for path, value in given.items():
        *sections, key = path.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    return nested


def _arguments(tree: type[BaseModel], arguments: Sequence[str]) -> list[Given]:
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
            raise InputError(f"{short(argument)} is not of the form KEY.PATH=VALUE, for example {EXAMPLE}")
        if path == BASE:
            raise InputError(f"{argument!r}: {BASE} can only stand in a file; give that file as the config")
        if given.setdefault(path, text) != text:
            raise InputError(f"{path}={given[path]} and {argument} disagree; give one of them")
        try:
            value = values.of_argument(text, annotation_of(tree, path))
        except KeyError:
            raise InputError(f"argument {path[:80]}=...: {unknown(path, tree)}") from None
        layers.append((f"argument {argument if len(argument) <= 80 else path + '=...'}", _nested({path: value})))
    return layers
