"""The command line of SSQL: the authors' commands and flags, shared options, `KEY.PATH=VALUE` (click only, no tensor).

A flag given explicitly wins over `KEY.PATH=VALUE`, that over the YAML file; `--output`, `--seed`, `--resume`, `-j` and
`-p` are one parameter each with `OUTPUT`, `SEED`, `MODEL.CHECKPOINT`, `TRAIN.NUM_WORKERS` and `TRAIN.PRINT_FREQ`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.config import add_configs, config_options
from lowbit.cli.evaluation import LINEAR, PROBES, file_flags, parsed, pretraining_flags
from lowbit.cli.options import Decorator, apply_options, gathered, optim_options, run_options
from lowbit.cli.parsing import SEED
from lowbit.cli.program import Group
from lowbit.options import LinearOptions, RunOptions
from ssql import __version__
from ssql.bitwidths import DEFAULT, parse_bits
from ssql.options import BitSweepOptions, PretrainOptions

if TYPE_CHECKING:
    from ssql.config import Config
    from ssql.unused_keys import Command


@click.group(cls=Group, name="ssql")
@click.version_option(__version__)
def cli() -> None:
    """SSQL (Cao et al., ECCV 2022): pretrain once without labels, run at any bit-width."""


main = cli.script  # the console script
add_configs(cli, "ssql")


def config_of(command: "Command", training: bool = True) -> Decorator:
    """The config of a command, the authors' flags, and the shared options (`lowbit.cli.config`)."""

    def read(name: str, overrides: tuple[str, ...], flags: dict[str, Any]) -> "Config":
        from ssql.config import read_config

        sched = click.get_current_context().params.get("sched")
        return read_config(command, name, overrides, flags, sched)

    return config_options(read, training)


@cli.command("ssl")
@config_of("ssl")
@gathered("own", PretrainOptions, [
    *pretraining_flags(),
    click.option("--authors-layout", is_flag=True, help="Write checkpoint_authors.pth.tar at the end, too."),
])  # fmt: skip
@optim_options("sgd", "cosine")
def ssl(**given: Any) -> None:
    """Pretrain without labels: SimSiam, BYOL, MoCo, SimCLR, and SSQL on them, as SSL.TYPE of the config says."""
    from ssql.commands.pretrain import pretrain

    pretrain(**given)


def classifying_options(command: "Command") -> Decorator:
    """The options of `linear` and `default`."""
    optim = optim_options("TRAIN.OPTIMIZER.NAME", "TRAIN.LR_SCHEDULER.TYPE")
    return apply_options([config_of(command), gathered("own", LinearOptions, LINEAR), optim])


@cli.command("linear")
@classifying_options("linear")
def linear(**given: Any) -> None:
    """Evaluate a pretrained net: a probe on it (TRAIN.LINEAR_EVAL: True), or fine-tuning (False), at QUANT.W/A.BIT."""
    from ssql.commands.linear import linear

    linear("linear", **given)


@cli.command("default")
@classifying_options("default")
def default(**given: Any) -> None:
    """The authors' older `linear`: evaluates after every epoch and keeps model_best.pth.tar."""
    from ssql.commands.linear import linear

    linear("default", **given)


@cli.command("sweep")
@gathered("own", BitSweepOptions, [
    *file_flags("QUANT.CALIBRATION.PICTURES"),
    click.option("--bits", default=DEFAULT, show_default=True, callback=parsed(parse_bits), help="fp, or <w>w<a>f; "
                 "0 bits: float."),
    click.option("--probe-per-bits", is_flag=True, help="Also train a probe at each width."),
    click.option("--fp", type=click.Choice(["float", "authors"]), help="As QUANT.FP: authors keeps the pins at fp."),
    *PROBES,
])  # fmt: skip
@run_options(training=False)
def sweep(**given: Any) -> None:
    """Evaluate CKPT, a checkpoint of ours or of the authors or a backbone, at several bit-widths: k-NN and a probe."""
    from ssql.commands.sweep import sweep

    sweep(**given)


@cli.command("draw")
@config_of("draw", training=False)
def draw(name: str, config: "Config", options: RunOptions) -> None:
    """Draw a map (t-SNE) of training features of MODEL.PRETRAINED at QUANT.W/A.BIT: features.png and .csv."""
    from ssql.commands.draw import draw

    draw(options, config, name)


@cli.command("demo")
@run_options(output=Path("runs/ssql-demo"), data=False, training=False)
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything.")
def demo(options: RunOptions) -> int:
    """The digits: SimSiam and SSQL trained alike, and swept over bit-widths; a table, a picture, result.json."""
    from ssql.commands.demo import demo

    return demo(options)
