"""Single values of a config: how text becomes one, and the types that keys are checked by."""

import ast
import types
import typing
import warnings
from itertools import pairwise
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, Field

from lowbit.config.files import StrictLoader
from lowbit.errors import InputError

MAX_DEPTH, MAX_VALUES = 20, 100_000  # of one value: YAML aliases may multiply without end


def _size(value: tuple[int, int]) -> tuple[int, int]:
    if value != (-1, -1) and min(value) < 1:
        raise ValueError("should be two sizes in pixels, or (-1, -1) for not stated")
    return value


def ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    """For `AfterValidator`: numbers none of which is smaller than the one before."""
    if any(a > b for a, b in pairwise(value)):
        raise ValueError("should be in ascending order")
    return value


Count = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Size = Annotated[tuple[int, int], AfterValidator(_size)]  # height and width in pixels


def of_file(value: Any, annotation: Any) -> Any:
    """A value of a file: strings by `ast.literal_eval` first, text kept where the key holds text, lists to tuples.

    Raises:
        InputError: nested too deeply, or too many values.
    """
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


def of_argument(text: str, annotation: Any) -> Any:
    """The value of a `KEY.PATH=VALUE`: a Python literal, else what YAML reads in it, else the text itself."""
    value = _literal(text)
    if _holds_text(annotation) or value != text:
        return text if _holds_text(annotation) else value
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


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
