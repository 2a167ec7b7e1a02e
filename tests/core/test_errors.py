"""Errors that name their file, and the flags of commands with a YAML config."""

from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner

from lowbit.checkpoint.check import behind, unwrapped_state
from lowbit.cli.evaluation import PROBES, file_flags, parsed
from lowbit.cli.options import gathered
from lowbit.errors import InputError, naming
from lowbit.options import ProbedFileOptions


def test_an_error_names_its_file_once() -> None:
    for said in ("it is damaged", "a/b.pth: it is damaged"):
        with pytest.raises(InputError) as error, naming(Path("a/b.pth")):
            raise InputError(said)
        assert str(error.value) == "a/b.pth: it is damaged"


def test_tensors_are_found_without_prefixes() -> None:
    x, y = torch.zeros(1), torch.ones(1)
    for checkpoint in ({"state_dict": {"module.a.x": x, "module.y": y}, "epoch": 1}, {"a.x": x, "module.y": y}):
        state = unwrapped_state(checkpoint)
        assert state == {"a.x": x, "y": y} and behind(state, "a.") == {"x": x}
    assert unwrapped_state({"state_dict": {"a": 1}}) is None and unwrapped_state({"state_dict": {}}) is None
    with pytest.raises(InputError, match=r"both y and module\.y"):
        unwrapped_state({"y": y, "module.y": y})


def number(text: str) -> int:
    if not text.isdigit():
        raise InputError(f"{text} is no number: give one")
    return int(text)


def test_flags_of_a_sweep_make_its_options() -> None:
    seen: list[tuple[ProbedFileOptions, int]] = []

    @click.command()
    @gathered("own", ProbedFileOptions, [*file_flags("A.KEY"), *PROBES])
    @click.option("--number", callback=parsed(number, -1))
    def go(own: ProbedFileOptions, number: int) -> None:
        seen.append((own, number))

    runner = CliRunner()
    assert runner.invoke(go, ["x.pth", "--calibration", "5", "--probe-epochs", "3", "--number", "7"]).exit_code == 0
    assert runner.invoke(go, ["x.pth"]).exit_code == 0
    refused = runner.invoke(go, ["x.pth", "--number", "x"])
    assert seen == [
        (ProbedFileOptions(checkpoint=Path("x.pth"), calibration=5, probe_epochs=3), 7),
        (ProbedFileOptions(checkpoint=Path("x.pth")), -1),
    ]
    assert refused.exit_code == 1 and "x is no number: give one" in refused.output
    assert "As A.KEY." in runner.invoke(go, ["--help"]).output
