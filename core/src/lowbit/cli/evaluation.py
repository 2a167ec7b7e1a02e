"""The options that pretraining, linear evaluation, sweeps and exports have alike, for methods with a YAML config."""

from collections.abc import Callable
from typing import Any

import click

from lowbit.cli.options import Decorator
from lowbit.cli.parsing import COUNT, MANY, Real, UserPath
from lowbit.errors import InputError

KEEP_GLOBAL_BATCH = click.option(
    "--keep-global-batch", is_flag=True, help="Accumulate gradients to reach the config's global batch."
)
LINEAR = [
    KEEP_GLOBAL_BATCH,
    click.option(
        "--cache-features", is_flag=True, help="Train a probe on the evaluation transform, features taken once."
    ),
]
POSITIVE = Real(0, min_open=True)
PROBES = [
    click.option("--probe-lr", type=POSITIVE, default=30.0, show_default=True, help="Of the probes' SGD."),
    click.option("--probe-epochs", type=COUNT, default=100, show_default=True, help="x0.1 at 60, 80 %, rounded up."),
]


def pretraining_flags(of: str = "") -> list[Decorator]:
    """`lowbit.options.PretrainOptions`.

    Args:
        of: which nets the figures are of, for the help.
    """
    shown = f"Epochs between k-NN and collapse figures {of}on the test set (and after the last); 0: none, no test set "
    shown += "needed."
    return [KEEP_GLOBAL_BATCH, click.option("--probe-every", type=MANY, default=10, show_default=True, help=shown)]


def file_flags(calibration: str, arch: str = "timm's name") -> list[Decorator]:
    """`lowbit.options.FileOptions`.

    Args:
        calibration: the key that `--calibration` stands for.
        arch: what `--arch` is.
    """
    return [
        click.argument("checkpoint", metavar="CKPT", type=UserPath()),
        click.option("--dataset", metavar="NAME", help="As in a config; default: what CKPT was trained on."),
        click.option("--arch", metavar="NAME", help=f"{arch} of the net, where CKPT does not say."),
        click.option("--calibration", type=COUNT, metavar="N", help=f"As {calibration}."),
    ]


def parsed(parse: Callable[[str], Any], empty: Any = None) -> Callable[..., Any]:
    """A click callback that reads an option's text and refuses as the command does.

    Args:
        parse: text to value.
        empty: the value without the option.
    """

    def read(context: click.Context, param: click.Parameter, value: str | None) -> Any:
        try:
            return empty if value is None else parse(value)
        except InputError as error:
            raise click.ClickException(str(error)) from error

    return read
