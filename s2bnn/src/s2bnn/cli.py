"""The command line of S2-BNN (click only, no tensor)."""

import click

from lowbit.cli.program import Group
from s2bnn import __version__


@click.group(cls=Group, name="s2bnn")
@click.version_option(__version__)
def cli() -> None:
    """S2-BNN: self-supervised binary neural networks by guided distribution calibration (Shen et al., CVPR 2021)."""


main = cli.script  # the console script
