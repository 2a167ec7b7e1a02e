"""A tree of keys: sections with typed, checked, frozen values. Each method builds its own of `Node`s.

No torch in this package, so that a command can check its config before anything heavy is loaded.
"""

import functools
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

Tree = TypeVar("Tree", bound=BaseModel)


class Node(BaseModel):
    """A section of a tree: unknown keys and wrong types are errors, values do not change. Sequences are tuples."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def dump_config(config: BaseModel) -> dict[str, Any]:
    """The resolved config as plain JSON values, nested by section; reading it back gives an equal config."""
    return config.model_dump(mode="json")


def is_section(annotation: Any) -> typing.TypeGuard[type[BaseModel]]:
    """Whether a key of this type holds keys."""
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def leaves(tree: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every key of a tree by its full path, sections left out."""
    for key, field in tree.model_fields.items():
        if is_section(field.annotation):
            yield from leaves(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key


def annotation_of(tree: type[BaseModel], path: str) -> Any:
    """The type of a key or section by its full path.

    Raises:
        KeyError: there is none.
    """
    annotation: Any = tree
    for key in path.split("."):
        if not is_section(annotation):
            raise KeyError(path)
        annotation = annotation.model_fields[key].annotation
    return annotation


def with_values(config: Tree, values: Mapping[str, Any]) -> Tree:
    """A config with other values at some keys, by full path; not checked again."""
    for path, value in values.items():
        head, _, rest = path.partition(".")
        inner = with_values(getattr(config, head), {rest: value}) if rest else value
        config = config.model_copy(update={head: inner})
    return config


def value_of(config: BaseModel, path: str) -> Any:
    """The value of a key by its full path."""
    return functools.reduce(getattr, path.split("."), config)
