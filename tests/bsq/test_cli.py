"""The authors' command lines: every flag and default of theirs, spellings, what is refused, and what `--help` costs."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bsq.cli import cli
from bsq.options import timm_name
from lowbit.errors import InputError
from lowbit.options import WORKERS

PROGRAMS = {f"{name}.py": name for name in ("cifar_prune_STE", "cifar_finetune", "convert")}
CHANGED = {  # (the authors' default, ours); see bsq/README.md
    "depth": (29, None),  # their own program refuses 29; with -a resnet ours is 20
    "resume": ("", None),
    "workers": (4, WORKERS),  # as many, or the cores if fewer
    "checkpoint": ("checkpoint", None),  # an evaluation writes only where it is told to, a training there too
}


def defaults_of(command: str) -> dict[str, Any]:
    """What a bare command line resolves to, by every long spelling without its dashes."""
    context = cli.commands[command].make_context(command, [])
    found = {}
    for option in context.command.params:
        value = context.params.get(option.name or "", option.default)
        value = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
        found |= {flag.lstrip("-").replace("-", "_"): value for flag in option.opts}
    return found


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_flag_and_default_of_the_authors(program: str, golden: Callable[[str], Path]) -> None:
    theirs = json.loads((golden("bsq") / "defaults.json").read_text())[program]
    ours = defaults_of(PROGRAMS[program])
    for name, default in theirs.items():
        assert ours[name] == default or (default, ours[name]) == CHANGED.get(name), name


@pytest.mark.parametrize(
    "line",
    [
        "cifar_prune_STE -a resnet --depth 20 --epochs 350 --lr 0.1 --schedule 250 --gamma 0.1 --wd 1e-4 "
        "--decay 0.01 --Prun_Int 50 --thre 0.0 --checkpoint xxx --bin --L1 --act 4 --Nbits 99",
        "cifar_finetune -a resnet --depth 20 --epochs 250 --lr 0.0001 --schedule 250 --gamma 0.1 --wd 1e-4 "
        "--bin --checkpoint xxx-ft --Nbits 99",
        "convert -a resnet --depth 20 -j 2 --cardinality 8 --widen-factor 4 --growthRate 12 --compressionRate 2 "
        "--gpu-id 0,1 --drop 0 --start-epoch 3 --decay 0.01 --block-name BasicBlock -e --manualSeed 5 --Nbits 99",
    ],
)
def test_the_authors_lines_are_understood(line: str) -> None:
    """Up to the one wrong value at the end."""
    result = CliRunner().invoke(cli, line.split())
    assert result.exit_code == 2
    assert "'--Nbits': 99" in result.stderr


@pytest.mark.parametrize(
    ("arch", "depth", "name"),
    [
        ("resnet", 20, "cifar_resnet20_1x1"),
        ("resnet", None, "cifar_resnet20_1x1"),
        ("resnet", 26, "cifar_resnet26_1x1"),
        ("resnet", 50, "cifar_resnet50_1x1"),
        ("resnet", 110, "cifar_resnet110_1x1"),
        ("resnet20", None, "cifar_resnet20_1x1"),
        ("resnet20", 20, "cifar_resnet20_1x1"),
        ("resnet56", None, "cifar_resnet56_1x1"),
        ("resnet50", None, "resnet50"),
        ("cifar_resnet8_1x1", None, "cifar_resnet8_1x1"),
    ],
)
def test_names_of_nets(arch: str, depth: int | None, name: str) -> None:
    assert timm_name(arch, depth) == name


@pytest.mark.parametrize(
    ("arch", "depth", "block"),
    [
        ("resnet", 29, "BasicBlock"),
        ("resnet", 0, "BasicBlock"),
        ("resnet20", 32, "BasicBlock"),
        ("resnet50", 50, "BasicBlock"),
        ("resnet", 20, "Bottleneck"),
    ],
)
def test_names_that_contradict(arch: str, depth: int, block: str) -> None:
    with pytest.raises(InputError, match=r"--depth|--block-name"):
        timm_name(arch, depth, block)


@pytest.mark.parametrize("command", ["cifar_prune_STE", "cifar_finetune"])
def test_no_run_starts_at_a_stated_epoch(command: str) -> None:
    """The authors' programs begin their loop there, on whatever weights there are."""
    result = CliRunner().invoke(cli, [command, "--start-epoch", "3", "--dry-run"])
    assert result.exit_code == 2 and "--resume auto" in result.stderr


def cpu_seconds(*args: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "bsq", *args], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("command", [None, *cli.commands])
def test_help_is_fast(command: str | None) -> None:
    """Gate 7: under 0.5 s of CPU time."""
    assert cpu_seconds(*([command] if command else []), "--help") < 0.5


def test_the_commands() -> None:
    assert list(cli.commands) == ["train", "convert", "cifar_prune_STE", "cifar_finetune", "report", "export", "demo"]
    assert "cifar_finetune" in CliRunner().invoke(cli, []).stdout
    said = " ".join(CliRunner().invoke(cli, ["train", "--help"]).stdout.split())
    assert "convert takes a checkpoint of any timm net" in said
