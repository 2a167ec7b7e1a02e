"""A config on the command line: flags over arguments over the file over the flags' defaults, on a toy method."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from lowbit.cli.config import config_options
from lowbit.cli.program import Group
from lowbit.config.keys.root import Root
from lowbit.config.load import load_config
from lowbit.options import RunOptions

seen: dict[str, Any] = {}


@click.group(cls=Group, name="toy")
def toy() -> None:
    """A program."""


def read(name: str, overrides: tuple[str, ...], flags: dict[str, Any]) -> Root:
    return load_config(Root, name, overrides, shipped=Path(), flags=flags, defaults={"TRAIN.NUM_WORKERS": 3})


@toy.command("go")
@click.option("--fast", is_flag=True)
@config_options(read)
def go(**values: Any) -> None:
    """Record what was understood."""
    seen.clear()
    seen.update(values)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    def run(text: str, *args: str) -> Result:
        (tmp_path / "a.yaml").write_text(text)
        return CliRunner().invoke(toy, ["go", "--config", str(tmp_path / "a.yaml"), *args])

    return run


def test_the_config_and_the_options_by_it(run: Any, tmp_path: Path) -> None:
    assert run("TRAIN: {EPOCHS: 4}\n", "TRAIN.BATCH_SIZE=8", "--fast", "--accumulate", "2").exit_code == 0
    config = seen.pop("config")
    assert (config.TRAIN.EPOCHS, config.TRAIN.BATCH_SIZE, config.TRAIN.NUM_WORKERS, config.SEED) == (4, 8, 3, None)
    options = RunOptions(output=Path("train_log"), workers=3, accumulate=2)  # `workers`: the reader's default
    assert seen == {"name": str(tmp_path / "a.yaml"), "options": options, "fast": True}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), (Path("y"), 1, "a.tar", 5, 8)),
        (("OUTPUT=z", "SEED=2", "TRAIN.NUM_WORKERS=0"), (Path("z"), 2, "a.tar", 0, 8)),
        (("OUTPUT=z", "SEED=2", "--output", "w", "--seed", "0"), (Path("w"), 0, "a.tar", 5, 8)),
        (("OUTPUT=", "SEED=None", "MODEL.CHECKPOINT="), (Path("train_log"), 0, None, 5, 8)),
        (("SEED=3", "--resume", "auto", "-j2", "-p", "50"), (Path("y"), 3, "auto", 2, 50)),
        (("--resume", "", "--num_workers", "4"), (Path("y"), 1, None, 4, 8)),
    ],
)
def test_a_flag_wins_over_an_argument_and_that_over_the_file(run: Any, args: tuple[str, ...], expected: tuple) -> None:
    text = "{OUTPUT: y, SEED: 1, MODEL: {CHECKPOINT: a.tar}, TRAIN: {NUM_WORKERS: 5, PRINT_FREQ: 8}}"
    assert run(text, *args).exit_code == 0
    config, options = seen["config"], seen["options"]
    assert (options.output, options.seed, options.resume, options.workers, config.TRAIN.PRINT_FREQ) == expected
    assert config.OUTPUT in ("", str(options.output)) and (options.resume or "") == config.MODEL.CHECKPOINT


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("TRAIN.EPOHCS=3",), "'TRAIN.EPOCHS'"),
        (("EPOCHS",), "KEY.PATH=VALUE, for example TRAIN.EPOCHS=100"),
        (("-p", "0"), "'-p'"),
    ],
)
def test_what_the_reader_refuses_is_one_line(run: Any, args: tuple[str, ...], said: str) -> None:
    result = run("SEED: 1\n", *args)
    assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1


def test_importing_it_does_not_import_what_reads_configs() -> None:
    code = "import sys, lowbit.cli.config; sys.exit(bool({'torch', 'pydantic', 'yaml', 'numpy'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
