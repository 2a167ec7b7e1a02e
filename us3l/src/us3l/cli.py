"""The command line of US3L (click only, no tensor)."""

import click

from lowbit.cli.program import Group
from us3l import __version__


@click.group(cls=Group, name="us3l")
@click.version_option(__version__)
def cli() -> None:
    """US3L (Cao et al., CVPR 2023): pretrain once without labels, run at any width."""


main = cli.script  # the console script
