"""The options that every training or evaluating command shares: decorators that make the values of `lowbit.options`."""

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from lowbit.cli.parsing import COUNT, MANY, SEED, WORKER_COUNT, Real, Several, Switch, UserPath
from lowbit.options import WORKERS, OptimOptions, RunOptions, SgdOptions
from lowbit.paths import user_path

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
SCHEDULES = ("step", "cosine")


def run_options(
    *,
    seed: int = 0,
    output_flags: Sequence[str] = ("--output",),
    output: Path | None = None,
    output_note: str = "nothing is written without it",
    data: bool = True,
    data_argument: bool = False,
    pretrained_flag: str = "--pretrained",
    training: bool = True,
) -> Decorator:
    """Give a command the shared options; it receives them as one argument `options: RunOptions`.

    Args:
        seed: the original program's default.
        output_flags: every spelling of `--output`; the originals had their own names for it.
        output: default folder.
        output_note: what happens without `--output` where there is no default.
        data: False leaves out what concerns pictures and computing.
        data_argument: the dataset root is given as an argument DATA, or as `--data`; it has no default.
        pretrained_flag: of timm's weights, where the original's flag of this name means something else.
        training: False leaves out what only a training loop understands.
    """
    chosen = _data_options(seed, data_argument, pretrained_flag) if data else []
    chosen += _folder_options(output_flags, output, output_note)
    chosen += _training_options() if training else []
    if not data_argument:
        return gathered("options", RunOptions, chosen)
    argument = click.argument("folder", metavar="DATA", required=False, type=UserPath())
    names = {field.name: field.name for field in fields(RunOptions)}
    return gathered("options", _rooted, [argument, *chosen], {**names, "folder": "folder"})


def _rooted(folder: Path | None, data: Path | None, **shared: Any) -> RunOptions:
    root = folder if data is None else data
    if root is None or None not in (folder, data):
        raise click.UsageError("the dataset root is given once: as the argument DATA, or as --data")
    return RunOptions(data=root, **shared)


def optim_options(opt: str = "the method's", sched: str = "the method's") -> Decorator:
    """Give a training command `--opt`, `--sched` and `--warmup-epochs` as one argument `optim: OptimOptions`.

    Args:
        opt: the command's own optimizer, as the help names it.
        sched: its own schedule, likewise.
    """
    return gathered("optim", OptimOptions, optim_flags(opt, sched))


def optim_flags(opt: str, sched: str) -> list[Decorator]:
    """The options of `optim_options`, of which a command makes a value of its own."""
    return [
        click.option("--opt", type=click.Choice(OPTIMIZERS), help=f"Optimizer.  [default: {opt}]"),
        click.option("--sched", type=click.Choice(SCHEDULES), help=f"Learning rate by epoch.  [default: {sched}]"),
        click.option(
            "--warmup-epochs",
            type=MANY,
            default=0,
            show_default=True,
            metavar="N",
            help="Epochs in which the learning rate rises to its full value.",
        ),
    ]


def sgd_options(
    epochs: int, schedule: tuple[int, ...] = (150, 225), weight_decay: float = 5e-4, opt: str | None = "sgd"
) -> Decorator:
    """Give a command that trains with labels its batch, epochs and rates as one argument `sgd: SgdOptions`.

    Args:
        epochs: the original program's default, as the others.
        schedule: epochs.
        weight_decay: likewise.
        opt: what `--opt` is by default, as the help names it; None: the command has no other optimizer and schedule.
    """
    positive = Real(0, min_open=True)
    options: list[Decorator] = [
        click.option("--epochs", type=COUNT, default=epochs, show_default=True),
        click.option("--train-batch", type=COUNT, default=128, show_default=True, help="Of the whole job."),
        click.option("--lr", "--learning-rate", type=positive, default=0.1, show_default=True),
        click.option(
            "--schedule",
            cls=Several,
            type=MANY,
            default=schedule,
            show_default=True,
            metavar="EPOCH...",
            help="Epochs (from 0) at whose start the rate is multiplied by --gamma.",
        ),
        click.option("--gamma", type=Real(0, 1000, min_open=True), default=0.1, show_default=True),
        click.option("--momentum", type=Real(0, 1, max_open=True), default=0.9, show_default=True),
        click.option("--weight-decay", "--wd", type=Real(0), default=weight_decay, show_default=True),
    ]
    options += [] if opt is None else optim_flags(opt, sched="step at --schedule")
    return gathered("sgd", SgdOptions, options)


def ignored_options(flags: Mapping[str, Any]) -> Decorator:
    """Flags of an original program that had no effect there: accepted, with their defaults, without effect here.

    Args:
        flags: spellings, with / between them, and defaults.
    """
    return apply_options(
        [
            click.option(
                *spelled.split("/"), default=default, is_flag=default is False, expose_value=False, hidden=True
            )
            for spelled, default in flags.items()
        ]
    )


def _refuse_start(context: click.Context, option: click.Parameter, value: int) -> None:
    if value:
        raise click.BadParameter(f"{value}: a run goes on from a checkpoint alone, --resume auto", context, option)


def start_epoch_option() -> Decorator:
    """The original programs' `--start-epoch`, of which 0 alone is allowed: there `--resume` sets it as well."""
    return click.option("--start-epoch", type=int, default=0, expose_value=False, hidden=True, callback=_refuse_start)


def ignored_note(flags: Mapping[str, Any]) -> str:
    """The line under `--help` that names them."""
    return f"Accepted without effect, as in the authors' program: {', '.join(flags)}."


def stated(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the running command's parameters, by click's names, that its command line states."""
    source = click.get_current_context().get_parameter_source
    return tuple(name for name in names if source(name) is ParameterSource.COMMANDLINE)


def gathered(
    name: str, build: Callable[..., Any], options: Sequence[Decorator], keys: Mapping[str, str] | None = None
) -> Decorator:
    """Give a command several options as one argument `name`, which `build` makes of them.

    Args:
        name: of the command's argument.
        build: makes the value (a dataclass, or a function).
        options: click options.
        keys: click's name of each option -> its parameter in `build`; None: those that `build` has, or the names of all
            options where it takes any.
    """
    parameters = inspect.signature(build).parameters.values()
    known = {parameter.name: parameter.name for parameter in parameters} if keys is None else keys
    if keys is None and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        known = {name: name for name in _names(options)}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**values: Any) -> Any:
            picked = {key: values.pop(given) for given, key in known.items() if given in values}
            return command(**values, **{name: build(**picked)})

        return apply_options(options)(wrapper)

    return decorate


def _names(options: Sequence[Decorator]) -> list[str]:
    """Click's names of several options."""

    def bare() -> None: ...

    return [str(param.name) for param in apply_options(options)(bare).__click_params__]  # type: ignore[attr-defined]


def apply_options(options: Sequence[Decorator]) -> Decorator:
    """One decorator out of several options, shown by `--help` in the given order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _data_options(seed: int, argument: bool, pretrained: str) -> list[Decorator]:
    root = None if argument else Path("./data")
    return [
        click.option("--data", type=UserPath(), default=root, show_default=not argument, help="Dataset root."),
        click.option("--download", is_flag=True, help="Let torchvision download the dataset into --data."),
        click.option(
            "-j",
            "--workers",
            type=WORKER_COUNT,
            default=WORKERS,
            show_default="4, or the cores if fewer",
            help="Loader processes (folders); at most the cores.",
        ),
        click.option("--seed", "--manualSeed", type=SEED, default=seed, show_default=True, help="For everything."),
        click.option(
            "--mixed-precision",
            type=click.Choice(["no", "bf16", "fp16"]),
            default="no",
            envvar="ACCELERATE_MIXED_PRECISION",
            show_default=True,
            help="Through accelerate; fp16 needs a GPU.",
        ),
        click.option("--channels-last", cls=Switch, default=False, help="Memory format of pictures and weights."),
        click.option("--limit-train", type=COUNT, metavar="N", help="N training pictures, class-balanced."),
        click.option("--limit-eval", type=COUNT, metavar="N", help="N test pictures, class-balanced."),
        click.option(pretrained, "pretrained", is_flag=True, help="timm's weights, and pictures shown as they expect."),
        click.option(
            "--max-corrupt",
            type=Real(0, 1),
            default=0.001,
            show_default=True,
            help="Fraction of unreadable pictures tolerated (named and counted).",
        ),
        click.option("--dry-run", is_flag=True, help="Check everything, print the plan, write nothing."),
    ]


def _folder_options(flags: Sequence[str], default: Path | None, note: str) -> list[Decorator]:
    return [
        click.option(
            *flags,
            "output",
            type=UserPath(file_okay=False),
            default=default,
            show_default=default is not None,
            help="The run's folder" + ("." if default is not None else f"; {note}."),
        ),
        click.option("--overwrite", is_flag=True, help="Replace the run that --output holds."),
    ]


def _training_options() -> list[Decorator]:
    return [
        click.option("--resume", metavar="auto|PATH", callback=_resumed, help="Continue the run of --output."),
        click.option("--max-steps", type=COUNT, metavar="N", help="Stop after N steps since the run's start and save."),
        click.option("--save-every", type=COUNT, metavar="N", help="Steps between checkpoints (default: an epoch)."),
        click.option("--compile", is_flag=True, help="Compile the backbone."),
        click.option("--val-split", type=Real(0, 1, min_open=True, max_open=True), help="Held-out fraction."),
        click.option("--accumulate", type=COUNT, default=1, show_default=True, help="Parts of a batch per step."),
        click.option("--clip-grad", type=Real(0, min_open=True), metavar="NORM", help="Clip the gradients' norm."),
        click.option("--tracker", "trackers", multiple=True, metavar="NAME", help="accelerate's trackers; repeatable."),
    ]


def _resumed(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    try:
        return user_path(value) if value else None  # the originals' default was ''
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}", ctx, param) from None
