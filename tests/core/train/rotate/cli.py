"""The command line (click only: `--help` does not import torch)."""

import click

from lowbit.cli.options import run_options, sgd_options
from lowbit.cli.program import Group
from lowbit.options import DATASETS, RunOptions, SgdOptions


@click.group(cls=Group, name="rotate")
def cli() -> None:
    """Pretrain by predicting rotations, with a student of two bits."""


@cli.command("train")
@click.option("-d", "--dataset", type=click.Choice(DATASETS), default="cifar10", show_default=True)
@click.option("-a", "--arch", default="cifar_resnet20_1x1", show_default=True, help="timm's name.")
@sgd_options(epochs=200)
@run_options()
def train(options: RunOptions, dataset: str, arch: str, sgd: SgdOptions) -> None:
    """Train, and pack the student."""
    from rotate import commands

    commands.train(options, dataset, arch, sgd)
