"""The command line of SQAKD (click only, no tensor)."""

import click

from lowbit.cli.program import Group
from sqakd import __version__


@click.group(cls=Group, name="sqakd")
@click.version_option(__version__)
def cli() -> None:
    """SQAKD: self-supervised quantization-aware knowledge distillation (Zhao and Zhao, AISTATS 2024)."""


main = cli.script  # the console script
