"""What reading a file may cost. Small files can expand without end: shared lists, expanded tensors, compressed records.

A checkpoint is as large as what is in it, and what is in it can be walked: anything else is refused before it is
summed, printed or copied.
"""

import json
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit.errors import InputError

MOST_VALUES, DEEPEST = 500_000, 64  # shared values count as often as they are reached
MOST_PICKLE = 8 << 20  # bytes; torch's safe reader takes about a second for one of 1 MB
MOST_HEADER = 8 << 20  # bytes of JSON
MOST_DIGITS = 64  # bits of a whole number
SLACK = 1 << 20  # bytes
VIEWS = 8  # bytes of tensors for each byte of the file: views may share a storage


def check_records(path: Path) -> None:
    """Refuse an archive that is larger than its file, or whose description is.

    Raises:
        InputError: its records are compressed or overlap, or their list of values is too long.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    size, held = path.stat().st_size, sum(entry.file_size for entry in entries)
    if held > size + SLACK:
        raise InputError(
            f"{path} expands from {size:,} to {held:,} bytes, which files of torch.save do not: name another"
        )
    pickled = max((entry.file_size for entry in entries if entry.filename.endswith(".pkl")), default=0)
    if pickled > MOST_PICKLE:
        raise InputError(
            f"{path} describes its tensors in {pickled:,} bytes, at most {MOST_PICKLE:,} are read: save its state_dict"
        )


def check_header(path: Path) -> None:
    """Refuse safetensors whose description is too long.

    Raises:
        InputError: it is.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > MOST_HEADER:
        raise InputError(f"{path} is damaged, or describes its tensors in {size:,} bytes ({MOST_HEADER:,} are read)")


def parse_json(text: str) -> dict[str, Any]:
    """A JSON object of plain, finite values.

    Raises:
        ValueError: it is none, too long or too deep, or holds numbers beyond 64 bits.
    """

    def refuse(constant: str) -> None:
        raise ValueError(f"it holds {constant}")

    def whole(digits: str) -> int:
        number = int(digits)
        if number.bit_length() > MOST_DIGITS:
            raise ValueError(f"it holds a number of {len(digits)} digits")
        return number

    if len(text) > MOST_HEADER:
        raise ValueError(f"its description has {len(text):,} characters")
    try:
        found = json.loads(text, parse_constant=refuse, parse_int=whole)
    except RecursionError as error:
        raise ValueError("its description is nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"its description is a {type(found).__name__}")
    try:
        deque(_walk(found, Path("its description")), maxlen=0)
    except InputError as error:
        raise ValueError(str(error)) from error
    return found


def check_content(content: Any, path: Path) -> None:
    """Refuse values that cannot be walked, printed or summed.

    Args:
        content: what was read, on the CPU.
        path: of the file.

    Raises:
        InputError: too many values or levels, or a cycle; numbers beyond 64 bits; tensors that are not dense, without
            values, or larger together than their storages.
    """
    size, held, storages = path.stat().st_size, 0, dict[int, int]()
    for place, value in _walk(content, path):
        if isinstance(value, int) and value.bit_length() > MOST_DIGITS:
            raise InputError(f"{path} holds a number of {value.bit_length()} bits in {place}; name another file")
        if isinstance(value, Tensor):
            if value.is_meta or value.layout != torch.strided or value.is_quantized or value.is_nested:
                what = "without values" if value.is_meta else "sparse, nested or quantized by torch"
                raise InputError(f"{path}: its {place} is {what}: save it dense")
            held += value.numel() * value.element_size()
            storage = value.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    if held > VIEWS * size + SLACK or sum(storages.values()) > VIEWS * size + SLACK:
        raise InputError(f"{path} has {size:,} bytes and tensors of {held:,}: they are views; save copies of them")


def _walk(content: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """Every value with its place, in no particular order."""
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    seen = 0
    while waiting:
        place, value, depth = waiting.pop()
        seen += 1
        if seen > MOST_VALUES or depth > DEEPEST:
            limit = f"{MOST_VALUES:,} values" if seen > MOST_VALUES else f"{DEEPEST} levels"
            raise InputError(f"{path} holds more than {limit}, or itself: save its state_dict alone")
        yield place or "content", value
        if isinstance(value, Mapping):
            for key, inner in value.items():
                waiting += [("a key", key, depth + 1), (f"{place}.{key!s:.80}".lstrip("."), inner, depth + 1)]
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend((f"{place}[{number}]", inner, depth + 1) for number, inner in enumerate(value))
