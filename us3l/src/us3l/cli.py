"""The command line of US3L: the authors' commands and flags, shared options, `KEY.PATH=VALUE` (click only, no tensor).

A flag given explicitly wins over `KEY.PATH=VALUE`, that over the YAML file; `--output`, `--seed`, `--resume`, `-j` and
`-p` are one parameter each with `OUTPUT`, `SEED`, `MODEL.CHECKPOINT`, `TRAIN.NUM_WORKERS` and `TRAIN.PRINT_FREQ`.
"""

from typing import TYPE_CHECKING, Any

import click

from lowbit.cli.config import config_options
from lowbit.cli.options import Decorator, apply_options, gathered, optim_options
from lowbit.cli.parsing import MANY
from lowbit.cli.program import Group
from us3l import __version__
from us3l.options import PretrainOptions, SlimmableOptions

if TYPE_CHECKING:
    from us3l.config import Config
    from us3l.unused_keys import Command


@click.group(cls=Group, name="us3l")
@click.version_option(__version__)
def cli() -> None:
    """US3L (Cao et al., CVPR 2023): pretrain once without labels, run at any width."""


main = cli.script  # the console script


def config_of(command: "Command", training: bool = True) -> Decorator:
    """The config of a command, the authors' flags, and the shared options (`lowbit.cli.config`)."""

    def read(name: str, overrides: tuple[str, ...], flags: dict[str, Any]) -> "Config":
        from us3l.config import read_config

        return read_config(command, name, overrides, flags, click.get_current_context().params.get("sched"))

    return config_options(read, training)


KEEP_BATCH = click.option("--keep-global-batch", is_flag=True, help="Accumulate gradients to reach TRAIN.GLOBAL_BATCH.")
PROBE_EVERY = click.option(
    "--probe-every", type=MANY, default=10, show_default=True, help="Epochs between k-NN and collapse figures of the "
    "widest and the narrowest net on the test set (and after the last); 0: none, no test set needed.",
)  # fmt: skip


def pretraining_options(command: "Command") -> Decorator:
    """The options of `ssl` and `distill`."""
    own = gathered("own", PretrainOptions, [KEEP_BATCH, PROBE_EVERY])
    optim = optim_options("TRAIN.OPTIMIZER.NAME, else sgd", "TRAIN.LR_SCHEDULER.TYPE")
    return apply_options([config_of(command), own, optim])


@cli.command("ssl")
@pretraining_options("ssl")
def ssl(**given: Any) -> None:
    """Pretrain without labels at random widths: SimCLR, BYOL, SimSiam, MoCo and others, as SSL.TYPE says."""
    from us3l.commands.pretrain import pretrain

    pretrain(**given)


@cli.command("distill")
@pretraining_options("distill")
def distill(**given: Any) -> None:
    """Learn without labels from a frozen teacher, DISTILL.TEACHER_PRETRAINED: SEED and its kin."""
    from us3l.commands.distill import distill

    distill(**given)


@cli.command("slimmable")
@config_of("slimmable")
@gathered("own", SlimmableOptions, [KEEP_BATCH])
@optim_options("TRAIN.OPTIMIZER.NAME, else sgd", "TRAIN.LR_SCHEDULER.TYPE")
def slimmable(**given: Any) -> None:
    """Train a switchable net with labels at the widths of MODEL.OFA.WIDTH_MULT_LIST."""
    from us3l.commands.slimmable import slimmable

    slimmable(**given)
