"""Bit-widths as the papers name them: `fp`, or `<w>w<a>f` such as `2w4f`, where 0 bits are float (no tensor here)."""

import re
from typing import NamedTuple

from lowbit.errors import InputError

DEFAULT = "fp,8w8f,5w5f,4w4f,3w3f,2w8f,2w4f"
ALLOWED = (0, *range(2, 17))


class Bits(NamedTuple):
    """Bits of weights and of activations, and their name in tables."""

    name: str
    w: int
    a: int


FLOAT = Bits("fp", 0, 0)


def parse_bits(text: str) -> tuple[Bits, ...]:
    """`fp,8w8f,2w4f` -> each width, in this order.

    Raises:
        InputError: not of this form, a number of bits that there is not, or a width twice.
    """
    found = [_one(name.strip().lower()) for name in text.split(",")]
    twice = next((bits for bits in found if found.count(bits) > 1), None)
    if twice is not None:
        raise InputError(f"--bits {text}: {twice.name} is named twice; name each width once")
    return tuple(found)


def _one(name: str) -> Bits:
    match = re.fullmatch(r"(\d{1,2})w(\d{1,2})f", name)
    w, a = (int(match[1]), int(match[2])) if match else (0, 0)
    if (match is None and name != FLOAT.name) or w not in ALLOWED or a not in ALLOWED:
        raise InputError(
            f"--bits: {name!r} is no bit-width: give fp, or <w>w<a>f with 2 to 16 bits of weights and activations (0: "
            "float), such as 2w4f"
        )
    return Bits(f"{w}w{a}f", w, a) if w or a else FLOAT
