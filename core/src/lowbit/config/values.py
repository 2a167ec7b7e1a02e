"""Single values of a config: how text becomes one, and the types that keys are checked by."""

import ast
import types
import typing
import warnings
from itertools import pairwise
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field

from lowbit.config.files import MAX_VALUES, parse
from lowbit.options import MAX_SIDE, MOST, MOST_REAL, MOST_SEED, MOST_WORKERS
from lowbit.paths import user_path

MAX_DEPTH = 20  # of one value, which has at most MAX_VALUES: YAML aliases may multiply without end
MOST_BITS = 1000  # of a whole number under any key: floats hold it, and Python prints it


def _size(value: tuple[int, int]) -> tuple[int, int]:
    if value != (-1, -1) and not 1 <= min(value) <= max(value) <= MAX_SIDE:
        raise ValueError(f"should be two sizes in pixels, {MAX_SIDE} at most, or (-1, -1) for not stated")
    return value


def ascending(value: tuple[float, ...]) -> tuple[float, ...]:
    """For `AfterValidator`: numbers none of which is smaller than the one before."""
    if any(a > b for a, b in pairwise(value)):
        raise ValueError("should be in ascending order")
    return value


Count = Annotated[int, Field(ge=0, le=MOST)]
AtLeastOne = Annotated[int, Field(ge=1, le=MOST)]
Pixels = Annotated[int, Field(ge=0, le=MAX_SIDE)]
Workers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]
Seed = Annotated[int, Field(ge=0, le=MOST_SEED)]
HeadWidth = Annotated[int, Field(ge=1, lt=2**20)]
QueueLength = Annotated[int, Field(ge=1, lt=2**24)]
UserPath = Annotated[str, AfterValidator(user_path)]  # "" where none is given
Amount = Annotated[float, Field(ge=0, le=MOST_REAL)]
Positive = Annotated[float, Field(gt=0, le=MOST_REAL)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Share = Annotated[float, Field(gt=0, le=1)]
HeightWidth = Annotated[tuple[int, int], AfterValidator(_size)]  # in pixels


def of_file(value: Any, annotation: Any) -> Any:
    """A value of a file: strings by `ast.literal_eval` first, text kept where the key holds text, lists to tuples.

    Raises:
        ValueError: nested too deeply, too many values, or a whole number that no key can hold.
    """
    if isinstance(value, str) and _holds_text(annotation):
        decoded = _literal(value)
        return decoded if isinstance(decoded, str | None) else value
    count = 0

    def plain(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES or depth > MAX_DEPTH:
            raise ValueError("is nested too deeply or holds too many values; check its YAML aliases")
        value = _literal(value) if isinstance(value, str) else value
        if isinstance(value, int) and value.bit_length() > MOST_BITS:
            raise ValueError(f"holds a whole number of {value.bit_length()} bits; give one of at most {MOST_BITS}")
        if isinstance(value, dict):
            return {
                key if isinstance(key, str) else str(plain(key, depth)): plain(one, depth + 1)
                for key, one in value.items()
            }
        return tuple(plain(one, depth + 1) for one in value) if isinstance(value, list | tuple) else value

    return plain(value, 0)


def of_argument(text: str, annotation: Any) -> Any:
    """The value of a `KEY.PATH=VALUE`: a Python literal, else what YAML reads in it, else the text itself.

    Nothing behind `=` is the empty text where the key may hold it.
    """
    if _holds_text(annotation) or (not text and "" in _members(annotation)):
        return text
    value = _literal(text)
    if value != text:
        return value
    try:
        return parse(text)
    except yaml.YAMLError:
        return text


def _holds_text(annotation: Any) -> bool:
    """Whether the only type but None is `str`, so that text which looks like a number stays text."""
    return _members(annotation) - {type(None)} == {str}


def _members(annotation: Any) -> set[Any]:
    """The types and literals that an annotation allows, taken out of unions."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType, Literal):
        return {annotation}
    inner = typing.get_args(annotation)
    return set(inner) if typing.get_origin(annotation) is Literal else set().union(*map(_members, inner))


def _literal(text: str) -> Any:
    """What Python reads in a string, else the string."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the syntax of what is not Python
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text
