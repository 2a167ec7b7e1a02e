"""Rounding of channels, lists of widths."""

import pytest

from lowbit.errors import InputError
from lowbit.slim.widths import channels_at, check_width, make_divisible, parse_widths, show_width, widths_in


def test_the_rounding_against_its_definition() -> None:
    for tenths in range(40, 6000):
        value = tenths / 10
        multiples = [m for m in range(8, 700, 8) if m >= 0.9 * value]
        assert make_divisible(value) == min(multiples, key=lambda m: (abs(m - value), -m)), value
    assert make_divisible(10, divisor=4) == 12 and make_divisible(1, minimum=8) == 8


def test_a_number_of_channels_never_exceeds_the_layers() -> None:
    assert make_divisible(8 * 0.3) == 9  # as recorded for values between 1.2 and 4
    assert channels_at(8, 0.3) == 8
    assert channels_at(96, 0.5, 6) == 48 and channels_at(20, 1.0) == 20


def test_lists_of_widths() -> None:
    assert parse_widths("0.5,0.25,0.5") == (0.25, 0.5)
    assert parse_widths("0.25:1.0:0.05") == pytest.approx([0.25 + 0.05 * i for i in range(16)])
    assert parse_widths("0.25:1.0:0.05")[-1] == 1.0
    assert parse_widths("0.3, 0.5:0.8:0.2") == (0.3, 0.5, 0.7)
    assert len(parse_widths("0.33333331,0.33333332")) == 1  # of rows and files of one name
    assert widths_in(0.5) == (0.5,) and widths_in({"a": 1.0, "b": 0.5, "c": 1.0}) == (0.5, 1.0)
    assert [show_width(w) for w in (0.25, 1.0, {"a": 0.5, "b": 1.0}, {"a": 0.5})] == [
        "0.25", "1", "0.5..1 by layer", "0.5 by layer"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "a", "0.5:1", "1:0.5:0.1", "0.1:1:0", "0:1:0.1", "0.1:1:1e-9", "nan", "0.5:2:0.5"]
)
def test_what_is_no_list_of_widths(text: str) -> None:
    with pytest.raises(InputError, match="width") as caught:
        parse_widths(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("width", [0.0, -1.0, 1.01, float("nan"), float("inf")])
def test_a_width_is_a_share(width: float) -> None:
    with pytest.raises(InputError, match=r"not in \(0, 1\]"):
        check_width(width)
