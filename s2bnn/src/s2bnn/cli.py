"""The command line of S2-BNN (click only, no tensor): the authors' programs, each one command, and the tools."""

import functools
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from lowbit.cli.options import Decorator, apply_options, gathered, run_options
from lowbit.cli.parsing import COUNT, MANY, Real, Several, UserPath
from lowbit.cli.program import Group
from lowbit.options import DATASETS, MAX_SIDE, MOST_CLASSES, RunOptions
from s2bnn import __version__
from s2bnn.options import LAUNCHER, FileOptions

POSITIVE = Real(0, min_open=True)


@click.group(cls=Group, name="s2bnn")
@click.version_option(__version__)
def cli() -> None:
    """S2-BNN: self-supervised binary neural networks by guided distribution calibration (Shen et al., CVPR 2021)."""


main = cli.script  # the console script


def launcher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The flags of the authors' launcher; the command receives the names of those that were given as `launched`."""
    names = {flag.lstrip("-").replace("-", "_"): flag for flag in LAUNCHER}

    @functools.wraps(command)
    def wrapper(**values: Any) -> Any:
        source = click.get_current_context().get_parameter_source
        given = tuple(flag for name, flag in names.items() if source(name) is ParameterSource.COMMANDLINE)
        return command(**{key: value for key, value in values.items() if key not in names}, launched=given)

    kinds: dict[str, dict[str, Any]] = {
        flag: {"default": default, "is_flag": default is False, "hidden": True} for flag, default in LAUNCHER.items()
    }
    return apply_options([click.option(flag, name, **kinds[flag]) for name, flag in names.items()])(wrapper)


def train_options(*, epochs: int, lr: float, schedule: Any, weight_decay: Any) -> list[Decorator]:
    """What both of the authors' programs have, with the defaults of one (a text: they differ by variant)."""

    def stated(default: Any) -> dict[str, Any]:
        text = isinstance(default, str)
        return {"default": None if text else default, "show_default": default if text else True}

    return [
        click.option("--dataset", type=click.Choice(DATASETS), default="folder", show_default=True,
                     help="folder: DATA/train/<class>/* and DATA/val/<class>/*, as ImageNet."),
        click.option("--epochs", type=COUNT, default=epochs, show_default=True, help="Of this command."),
        click.option("-b", "--batch-size", type=COUNT, default=256, show_default=True, help="Of each machine."),
        click.option("--lr", "--learning-rate", type=POSITIVE, default=lr, show_default=True),
        click.option("--schedule", cls=Several, type=MANY, metavar="EPOCH...", **stated(schedule),
                     help="Epochs (from 0) at whose start the rate is multiplied by 0.1."),
        click.option("--momentum", type=Real(0, 1, max_open=True), default=0.9, show_default=True,
                     help="Of SGD and LARS."),
        click.option("--wd", "--weight-decay", "weight_decay", type=Real(0), **stated(weight_decay),
                     help="Of all parameters."),
        click.option("-p", "--print-freq", type=COUNT, default=10, show_default=True, help="Steps between log lines."),
        click.option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N",
                     show_default="224, or their own in memory", help="Side of the pictures."),
        click.option("--sync-bn", is_flag=True, help="Batch norm over all processes."),
        click.option("--start-epoch", default=0, expose_value=False, hidden=True),  # --resume sets it, as in theirs
    ]  # fmt: skip


STEP = click.option("--step", type=click.IntRange(0, 2), required=True, help="0: real-valued, 1: binary activations, "
                    "2: binary activations and weights.")  # fmt: skip
STUDENT = click.option("--student", metavar="NAME", help="timm's name of the net, where the file does not say.")
STEP_OF_FILE = click.option("--step", type=click.IntRange(0, 2), help="Where the file does not say it (0: real-valued, "
                            "1: binary activations, 2: both).")  # fmt: skip


def file_options(required: bool, *more: Decorator) -> Decorator:
    """Which net, as one argument `own: FileOptions`."""
    file = click.argument("file", metavar="FILE" if required else "[FILE]", required=required, type=UserPath())
    return gathered("own", FileOptions, [file, STUDENT, STEP_OF_FILE, *more])


@cli.command("report")
@file_options(
    False, click.option("--classes", type=click.IntRange(0, MOST_CLASSES), metavar="N", help="Of the last layer."),
    click.option("--image-size", type=click.IntRange(8, MAX_SIDE), metavar="N", help="Side of the pictures."),
)  # fmt: skip
@run_options(data=False, training=False)
def report(options: RunOptions, own: FileOptions) -> None:
    """Count a net's real and binary operations and parameters: of FILE, or of --student (reactnet_a) at --step (2)."""
    from s2bnn.commands.report import report

    report(options, own)


@cli.command("export")
@file_options(True)
@click.option("--format", "form", type=click.Choice(["packed", "float", "backbone"]), default="packed",
              show_default=True, help="packed: one bit a weight.")  # fmt: skip
@run_options(data=False, training=False)
def export(options: RunOptions, own: FileOptions, form: str) -> None:
    """Write FILE, a checkpoint of ours or the authors', as a net that lowbit.load reads."""
    from s2bnn.commands.export import export

    export(options, own, form)
