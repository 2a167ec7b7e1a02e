"""The command line (click only: `--help` does not import torch)."""

from typing import Any

import click

from lowbit.cli.options import run_options
from lowbit.cli.parsing import Real
from lowbit.cli.program import Group
from lowbit.options import RunOptions


@click.group(cls=Group, name="rotate")
def cli() -> None:
    """Pretrain by predicting rotations, with a student of two bits."""


@cli.command("train")
@click.option("-d", "--dataset", default="cifar10", show_default=True)
@click.option("-a", "--arch", default="cifar_resnet20_1x1", show_default=True, help="timm's name.")
@click.option("--epochs", type=click.IntRange(min=1), default=100, show_default=True)
@click.option("--train-batch", type=click.IntRange(min=1), default=128, show_default=True, help="Of the whole job.")
@click.option("--lr", type=Real(0, min_open=True), default=0.1, show_default=True)
@run_options()
def train(options: RunOptions, **own: Any) -> None:
    """Train, and pack the student."""
    from rotate import commands

    commands.train(options, **own)
