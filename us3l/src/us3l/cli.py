"""The command line of US3L: the authors' commands and flags, shared options, `KEY.PATH=VALUE` (click only, no tensor).

A flag given explicitly wins over `KEY.PATH=VALUE`, that over the YAML file; `--output`, `--seed`, `--resume`, `-j` and
`-p` are one parameter each with `OUTPUT`, `SEED`, `MODEL.CHECKPOINT`, `TRAIN.NUM_WORKERS` and `TRAIN.PRINT_FREQ`.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.config import add_configs, config_options
from lowbit.cli.evaluation import KEEP_GLOBAL_BATCH, LINEAR, PROBES, file_flags, parsed, pretraining_flags
from lowbit.cli.options import Decorator, gathered, optim_options, run_options
from lowbit.cli.parsing import SEED, Real
from lowbit.cli.program import Group
from lowbit.options import BatchOptions, LinearOptions, PretrainOptions, RunOptions
from lowbit.slim.widths import parse_widths
from us3l import __version__
from us3l.options import CalibrateOptions, ExportOptions, WidthSweepOptions

if TYPE_CHECKING:
    from us3l.config import Config
    from us3l.unused_keys import Command


@click.group(cls=Group, name="us3l")
@click.version_option(__version__)
def cli() -> None:
    """US3L (Cao et al., CVPR 2023): pretrain once without labels, run at any width."""


main = cli.script  # the console script
add_configs(cli, "us3l")


def config_of(command: "Command", training: bool = True) -> Decorator:
    """The config of a command, the authors' flags, and the shared options (`lowbit.cli.config`)."""

    def read(name: str, overrides: tuple[str, ...], flags: dict[str, Any]) -> "Config":
        from us3l.config import read_config

        return read_config(command, name, overrides, flags, click.get_current_context().params.get("sched"))

    return config_options(read, training)


OPTIM = optim_options("TRAIN.OPTIMIZER.NAME, else sgd", "TRAIN.LR_SCHEDULER.TYPE")
FILE = file_flags("MODEL.OFA.CALIBRATION_PICTURES", "timm's or the authors' name")
PRETRAINING = gathered("own", PretrainOptions, pretraining_flags("of the widest and the narrowest net "))
WIDTHS = "Such as 0.25,0.5 or 0.25:1.0:0.05 (first, last, step)"


@cli.command("ssl")
@config_of("ssl")
@PRETRAINING
@OPTIM
def ssl(**given: Any) -> None:
    """Pretrain without labels at random widths: SimCLR, BYOL, SimSiam, MoCo and others, as SSL.TYPE says."""
    from us3l.commands.pretrain import pretrain

    pretrain(**given)


@cli.command("distill")
@config_of("distill")
@PRETRAINING
@OPTIM
def distill(**given: Any) -> None:
    """Learn without labels from a frozen teacher, DISTILL.TEACHER_PRETRAINED: SEED and its kin."""
    from us3l.commands.distill import distill

    distill(**given)


@cli.command("slimmable")
@config_of("slimmable")
@gathered("own", BatchOptions, [KEEP_GLOBAL_BATCH])
@OPTIM
def slimmable(**given: Any) -> None:
    """Train a switchable net with labels at the widths of MODEL.OFA.WIDTH_MULT_LIST."""
    from us3l.commands.slimmable import slimmable

    slimmable(**given)


@cli.command("linear")
@config_of("linear")
@gathered("own", LinearOptions, LINEAR)
@OPTIM
def linear(**given: Any) -> None:
    """Evaluate a net at MODEL.OFA.WIDTH_MULT: a probe (TRAIN.LINEAR_EVAL: True), or fine-tuning (False)."""
    from us3l.commands.linear import linear

    linear(**given)


@cli.command("calibrate")
@config_of("calibrate", training=False)
@gathered("own", CalibrateOptions, [
    click.option("--widths", callback=parsed(parse_widths, ()), help=f"{WIDTHS}; default: MODEL.OFA.WIDTH_MULT."),
])  # fmt: skip
def calibrate(**given: Any) -> None:
    """Write MODEL.PRETRAINED with batch-norm statistics of a width, or of several: a file each."""
    from us3l.commands.calibrate import calibrate

    calibrate(**given)


@cli.command("sweep")
@gathered("own", WidthSweepOptions, [
    *FILE,
    click.option("--widths", callback=parsed(parse_widths, ()), help=f"{WIDTHS}; default: those trained, or quarters."),
    click.option("--distinct", is_flag=True, help="All sub-networks that differ, in the place of --widths."),
    click.option("--best-under", type=Real(0, min_open=True), metavar="MACS", help="The largest sub-network of at most "
                 "so many million multiply-accumulates, in the place of --widths."),
    click.option("--probe-per-width", is_flag=True, help="Also train a probe at each width."),
    *PROBES,
])  # fmt: skip
@run_options(training=False)
def sweep(**given: Any) -> None:
    """Evaluate CKPT, a checkpoint of ours or of the authors or a backbone, at several widths: k-NN and a probe."""
    from us3l.commands.sweep import sweep

    sweep(**given)


@cli.command("export")
@gathered("own", ExportOptions, [
    *FILE,
    click.option("--width", type=Real(0, 1, min_open=True), help="Default: that of CKPT's statistics, or the widest."),
    click.option("--format", "kind", type=click.Choice(["plain", "packed"]), default="plain", show_default=True,
                 help="plain: subnetwork.pt2, .safetensors and .json; packed: packed.safetensors."),
])  # fmt: skip
@run_options(output_note="it is needed", training=False)
def export(**given: Any) -> None:
    """Write the sub-network of CKPT at a width as an ordinary net, with batch-norm statistics of its own."""
    from us3l.commands.export import export

    export(**given)


@cli.command("demo")
@run_options(output=Path("runs/us3l-demo"), data=False, training=False)
@click.option("--seed", type=SEED, default=0, show_default=True, help="For everything.")
def demo(options: RunOptions) -> int:
    """The digits: one net for four widths beside four nets trained alone; a table, a picture, result.json."""
    from us3l.commands.demo import demo

    return demo(options)
