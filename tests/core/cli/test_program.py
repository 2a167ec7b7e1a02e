"""How a program ends: errors and stops are one line of at most 300 characters."""

import pytest

from lowbit.cli.program import fail
from lowbit.errors import one_line


@pytest.mark.parametrize("text", ["x" * 100_000, "\x1b[31mred\nnext\x00", "a " * 400 + "do this", "\udcff"])
def test_a_message_is_one_line_of_at_most_300_characters(text: str) -> None:
    line = one_line(text)
    assert len(line) <= 300 and line.isprintable() and (len(text) < 300 or line.endswith(text[-20:].strip()))


def test_an_error_of_any_length_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("value " + "x" * 10**6 + " is wrong: give another") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) <= 301 and said.endswith("give another\n")
