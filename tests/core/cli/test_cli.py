"""The shared command line: values after a flag, spellings that agree, one-line errors, exit codes, no torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lowbit.cli.options import ignored_note, ignored_options, optim_options, run_options, sgd_options
from lowbit.cli.parsing import Real, Several, Switch
from lowbit.cli.program import Group
from lowbit.errors import InputError, Stopped
from lowbit.options import OptimOptions, RunOptions, SgdOptions

seen: dict[str, Any] = {}


@click.group(cls=Group, name="toy")
def toy() -> None:
    """A program."""


@toy.command("go")
@click.option("--schedule", cls=Several, type=int, default=(150, 225))
@click.option("--lr", "--learning-rate", type=Real(0, 1), default=0.1)
@click.option("-e", "--evaluate", is_flag=True)
@click.option("--distill", cls=Switch, type=click.Choice(["kd", "True", "False"]), alone="kd")
@click.argument("folder", required=False)
@optim_options(opt="sgd", sched="step at --schedule")
@run_options(seed=7, output_flags=("-c", "--checkpoint", "--output"))
def go(**values: Any) -> None:
    """Record what was understood."""
    seen.clear()
    seen.update(values)


@toy.command("end")
@click.argument("how")
def end(how: str) -> int:
    """End in every way."""
    if how == "input":
        raise InputError("a bad\nvalue")
    if how == "stop":
        raise Stopped("saved")
    if how == "fault":
        raise ZeroDivisionError
    return int(how)


@toy.command("bare")
@click.option("--distill", cls=Switch, type=click.Choice(["kd", "True", "False"]), alone="kd")
def bare(distill: str | None) -> None:
    """No arguments."""
    seen["distill"] = distill


def run(*args: str) -> Result:
    return CliRunner().invoke(toy, list(args))


@pytest.mark.parametrize(
    ("line", "found"),
    [("", (False, None, None)), ("--channels-last True --distill", (True, "kd", None)),
     ("--channels-last=False --distill=True", (False, "True", None)), ("--distill /", (False, "kd", "/")),
     ("--channels-last DATA --distill False", (True, "False", "DATA")), ("--distill --lr 1", (False, "kd", None))],
)  # fmt: skip
def test_a_switch_stands_alone_or_has_its_value(line: str, found: tuple[object, ...]) -> None:
    assert run("go", *line.split()).exit_code == 0
    assert (seen["options"].channels_last, seen["distill"], seen["folder"]) == found
    for wrong in ("--distill=maybe", "--distill maybe", "--distill maybe /"):  # no file is called so
        assert "'maybe' is not one of 'kd'" in run("go", *wrong.split()).stderr


def test_without_arguments_what_follows_a_switch_is_its_value() -> None:
    assert run("bare", "--distill").exit_code == 0 and seen["distill"] == "kd"
    refused = run("bare", "--distill", "maybe")
    assert refused.exit_code == 2 and "'maybe' is not one of 'kd'" in refused.stderr


def test_without_a_command_there_is_help() -> None:
    result = run()
    assert result.exit_code == 0 and result.stdout == run("--help").stdout and "A program." in result.stdout


@pytest.mark.parametrize(
    ("args", "schedule"),
    [
        ((), (150, 225)),
        (("--schedule", "100"), (100,)),
        (("--schedule", "100", "200", "-e"), (100, 200)),
        (("--schedule=100", "200", "300"), (100, 200, 300)),
        (("--schedule", "-1", "2"), (-1, 2)),
        (("--schedule", "1", "--schedule", "2"), (1, 2)),
    ],
)
def test_several_values_after_one_flag(args: tuple[str, ...], schedule: tuple[int, ...]) -> None:
    assert run("go", *args).exit_code == 0
    assert seen["schedule"] == schedule


def test_shared_options_arrive_as_one_value() -> None:
    assert run("go", "-c", "x", "-j2", "--limit-eval", "10", "--tracker", "a", "--tracker", "b").exit_code == 0
    expected = RunOptions(output=Path("x"), workers=2, limit_eval=10, trackers=("a", "b"), seed=7)
    assert seen["options"] == expected


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), OptimOptions()),
        (
            ("--opt", "lars", "--sched=cosine", "--warmup-epochs", "5"),
            OptimOptions(opt="lars", sched="cosine", warmup_epochs=5),
        ),
        (("--opt", "adamw"), OptimOptions(opt="adamw")),
    ],
)
def test_optimizer_and_schedule_arrive_as_one_value(args: tuple[str, ...], expected: OptimOptions) -> None:
    assert run("go", *args).exit_code == 0
    assert seen["optim"] == expected


def test_help_names_the_methods_own_optimizer_and_schedule() -> None:
    text = " ".join(run("go", "--help").stdout.split())
    assert "[default: sgd]" in text and "[default: step at --schedule]" in text


@toy.command("rooted")
@run_options(data_argument=True)
def rooted(options: RunOptions) -> None:
    """Record what was understood."""
    seen.update(options=options)


def test_the_dataset_root_is_an_argument_or_an_option_once() -> None:
    for given in (("here",), ("--data", "here")):
        assert run("rooted", *given).exit_code == 0 and seen["options"] == RunOptions(data=Path("here"))
    for wrong in ((), ("here", "--data", "here")):
        result = run("rooted", *wrong)
        assert result.exit_code == 2 and "DATA, or as --data" in result.stderr and result.stderr.count("\n") == 1


@toy.command("learn", epilog=ignored_note({"--old/--older": 1, "--plain": False}))
@sgd_options(epochs=30, schedule=(10, 20))
@ignored_options({"--old/--older": 1, "--plain": False})
def learn(**values: Any) -> None:
    """Record what was understood."""
    seen.update(values)


def test_training_with_labels_arrives_as_one_value() -> None:
    assert run("learn").exit_code == 0 and seen["sgd"] == SgdOptions(epochs=30, schedule=(10, 20))
    args = ("--epochs", "5", "--schedule", "1", "3", "--wd", "0.1", "--opt", "adamw", "--warmup-epochs", "2")
    assert run("learn", *args).exit_code == 0
    assert seen["sgd"] == SgdOptions(epochs=5, schedule=(1, 3), weight_decay=0.1, opt="adamw", warmup_epochs=2)


def test_flags_without_effect_are_accepted_and_named() -> None:
    seen.clear()
    assert run("learn", "--older", "3", "--plain").exit_code == 0 and set(seen) == {"sgd"}
    text = " ".join(run("learn", "--help").stdout.split())
    assert "without effect, as in the authors' program: --old/--older, --plain." in text and "--older " not in text


@pytest.mark.parametrize("args", [("--opt", "adagrad"), ("--sched", "poly"), ("--warmup-epochs", "-1")])
def test_other_optimizers_and_schedules_are_refused(args: tuple[str, str]) -> None:
    result = run("go", *args)
    assert result.exit_code == 2 and args[1] in result.stderr and len(result.stderr.splitlines()) == 1


def test_mixed_precision_falls_back_to_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert run("go").exit_code == 0
    assert seen["options"].mixed_precision == "bf16"
    assert run("go", "--mixed-precision", "no").exit_code == 0
    assert seen["options"].mixed_precision == "no"


@pytest.mark.parametrize(
    "args",
    [
        ("-c", "a", "--output", "./a"),
        ("--lr", "1e-1", "--learning-rate=0.1"),
        ("--seed", "3", "--manualSeed", "03"),
        ("-j4", "--workers", "4"),
    ],
)
def test_spellings_that_agree(args: tuple[str, ...]) -> None:
    assert run("go", *args).exit_code == 0


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("-c", "a", "--output", "b"), "disagree"),
        (("--seed", "3", "--manualSeed", "4"), "disagree"),
        (("-j4", "--workers", "5"), "disagree"),
        (("--lr", "nan"), "nan"),
        (("--lr", "2"), "2.0"),
        (("--lr", "fast"), "fast"),
        (("--sched", "1"), "--sched"),
        (("--checkpoint", "--evaluate"), "--evaluate"),
        (("--val-split", "1"), "--val-split"),
        (("--accumulate", "0"), "--accumulate"),
        (("--mixed-precision", "fp8"), "fp8"),
        (("--schedule",), "--schedule"),
        (("folder", "more"), "more"),
        (("--max-steps", "9" * 400), "1<=x<=999999999"),
        (("--save-every", "1000000000"), "1<=x<=999999999"),
        (("--max-steps", "9" * 5000), "valid integer"),
        (("--warmup-epochs", "1000000000"), "0<=x<=999999999"),
        (("--limit-train", "1000000000"), "1<=x<=999999999"),
        (("-j", "9223372036854775808"), "0<=x<=512"),
        (("-j", "513"), "0<=x<=512"),
        (("--seed", "9223372036854775808"), "0<=x<=9223372036854775807"),
        (("--clip-grad", "1" + "0" * 400), "0<x<=1000000000"),
        (("--clip-grad", "1e308"), "0<x<=1000000000"),
        (("--data", "x" * 256), "255 bytes"),
        (("--data", "a" + "/a" * 3000), "too long"),
        (("--output", "x/" + "y" * 300), "255 bytes"),
        (("--resume", "x" * 256), "255 bytes"),
    ],
)
def test_usage_errors_are_one_line(args: tuple[str, ...], names: str) -> None:
    result = run("go", *args)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert names in result.stderr and result.stderr.count("\n") == 1 and len(result.stderr) <= 301


def test_home_is_home_in_every_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run("go", "--data=~/d", "-c~/out", "--resume", "~/a.tar").exit_code == 0
    options = seen["options"]
    assert (options.data, options.output, options.resume) == (tmp_path / "d", tmp_path / "out", f"{tmp_path}/a.tar")
    assert run("go", "--resume", "auto").exit_code == 0 and seen["options"].resume == "auto"


def test_workers_are_at_most_the_cores_by_default() -> None:
    assert run("go").exit_code == 0
    assert seen["options"].workers == RunOptions().workers == min(4, os.cpu_count() or 1)


@pytest.mark.parametrize(("how", "code"), [("0", 0), ("1", 1), ("input", 2), ("stop", 75)])
def test_exit_codes(how: str, code: int) -> None:
    result = run("end", how)
    assert result.exit_code == code
    assert result.stderr.count("\n") == (1 if code in (2, 75) else 0)


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    result = run("end", "fault")
    assert result.exit_code == 1 and isinstance(result.exception, ZeroDivisionError)


def test_importing_it_imports_no_torch() -> None:
    imports = "import sys, lowbit.cli.options, lowbit.train.signals"
    code = f"{imports}; sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_interrupt_before_anything_ran() -> None:
    @toy.command("wait")
    def wait() -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert run("wait").exit_code == 75
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_wrong_command_line_is_told_once_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        result = run("go", "--lr", "2")
        assert (result.exit_code, result.stderr.count("\n")) == (2, lines)
        assert "a bad value" in run("end", "input").stderr  # which others may not have found
