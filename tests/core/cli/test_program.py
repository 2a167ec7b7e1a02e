"""How a program ends: errors and stops are one line of at most 300 characters."""

import logging
import warnings

import click
import pytest
from click.testing import CliRunner

from lowbit.cli.program import Group, fail
from lowbit.errors import InputError, Stopped, one_line
from lowbit.train import console


@pytest.mark.parametrize("text", ["x" * 100_000, "\x1b[31mred\nnext\x00", "a " * 400 + "do this", "\udcff"])
def test_a_message_is_one_line_of_at_most_300_characters(text: str) -> None:
    line = one_line(text)
    assert len(line) <= 300 and line.isprintable() and (len(text) < 300 or line.endswith(text[-20:].strip()))


def test_an_error_of_any_length_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail("value " + "x" * 10**6 + " is wrong: give another") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and len(said) <= 301 and said.endswith("give another\n")


@click.group(cls=Group, name="toy")
def toy() -> None:
    """A program."""


@toy.command("go")
@click.argument("end", type=click.Choice(["input", "late", "stop", "fault", "pair", "done"]))
def go(end: str) -> None:
    """Remark on a key, then end in some way."""
    logging.getLogger("toy").warning("a remark")
    logging.getLogger("elsewhere").warning("a remark of a library")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)  # pytest has its own way with warnings
        logging.captureWarnings(True)
        warnings.warn("what Python warns of", stacklevel=1)
        logging.captureWarnings(False)
    if end == "late":
        console.checked()
    if end in ("input", "late"):
        raise InputError("a wrong value")
    if end == "stop":
        raise Stopped("saved")
    if end == "pair":
        raise RuntimeError("operator torchvision::nms does not exist")
    if end == "fault":
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("end", "lines"),
    [
        ("input", ["error: a wrong value"]),
        ("late", ["a remark", "error: a wrong value"]),
        ("stop", ["a remark", "stopped: saved"]),
        ("fault", ["a remark"]),
        ("done", ["a remark"]),
        (
            "pair",
            ["error: torch and torchvision do not fit (operator torchvision::nms does not exist): `lowbit doctor`"],
        ),
        ("other", ["error: Invalid value for '{input|late|stop|fault|pair|done}'"]),
    ],
)
def test_nothing_is_said_before_a_refusal(end: str, lines: list[str]) -> None:
    said = CliRunner().invoke(toy, ["go", end]).stderr.splitlines()
    assert len(said) == len(lines) and all(line.startswith(start) for line, start in zip(said, lines, strict=True))


def test_the_record_begins_when_all_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure_logging("toy")
    log = logging.getLogger("toy.more")
    log.info("first")
    assert capsys.readouterr().err == ""
    console.say("the record")
    log.info("second")
    console.refused()
    assert capsys.readouterr() == ("the record\n", "first\nsecond\n")
