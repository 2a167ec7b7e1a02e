"""A config on the command line: `--config NAME`, `KEY.PATH=VALUE`, and flags that are one parameter with a key.

A flag given explicitly wins over `KEY.PATH=VALUE`, that over the YAML file, that over the flag's default. Nothing of
`lowbit.config` is imported before a command runs.
"""

import dataclasses
import functools
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import click

from lowbit.cli.options import Decorator, apply_options, run_options, stated
from lowbit.cli.parsing import COUNT, WORKER_COUNT
from lowbit.errors import InputError
from lowbit.options import WORKERS, RunOptions
from lowbit.outcome import note_figures

Read = Callable[[str, tuple[str, ...], dict[str, Any]], Any]  # name, KEY.PATH=VALUE, flags by key -> the config


def config_options(read: Read, training: bool = True) -> Decorator:
    """Give a command its config; it receives `name: str` (of the file), `config`, and `options: RunOptions` by it.

    Beside `--config` and `KEY.PATH=VALUE` these are the flags that the authors of such configs have, and the shared
    options. What is one parameter with a key (`lowbit.config.keys.root.FLAGS`) comes in the config and, where it is a
    shared option, in `options`.

    Args:
        read: reads and checks the config.
        training: as in `run_options`.
    """
    chosen: list[Decorator] = [
        click.argument("overrides", nargs=-1, metavar="[KEY.PATH=VALUE]..."),
        click.option(
            "--config", "name", required=True, metavar="NAME", help="A YAML file, or a shipped config's name."
        ),
        click.option("-p", "--print-freq", type=COUNT, default=50, show_default=True, help="Steps between log lines."),
        # click stores values by name: this is another spelling of the shared --workers
        click.option("--num_workers", "workers", type=WORKER_COUNT, default=WORKERS, help="The same as --workers."),
        run_options(output=Path("./train_log"), training=training),
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*, name: str, overrides: tuple[str, ...], print_freq: int, options: RunOptions, **own: Any) -> Any:
            config, options = resolve(read, name, overrides, options)
            return command(name=name, config=config, options=options, **own)

        return apply_options(chosen)(wrapper)

    return decorate


def add_configs(group: click.Group, package: str) -> None:
    """Give a program the command `configs`, which lists the configs that come with its package."""

    @group.command("configs")
    def configs() -> None:
        """List the configs that come with the package, a line each."""
        from lowbit.config.files import describe
        from lowbit.train import console

        found = {f"configs/{name}": said for name, said in describe(Path(str(files(package))) / "configs").items()}
        note_figures(found)
        longest = max(map(len, found))
        console.say(*(f"{name:{longest}}  {said}" for name, said in found.items()))


def resolve(read: Read, name: str, overrides: tuple[str, ...], options: RunOptions) -> tuple[Any, RunOptions]:
    """The config with what the command line says explicitly, and the shared options with what the config says.

    Args:
        read: as for `config_options`.
        name: of the config.
        overrides: `KEY.PATH=VALUE` arguments.
        options: by the flags alone.

    Raises:
        click.ClickException: what `read` refuses.
    """
    from lowbit.config.keys.root import FLAGS
    from lowbit.config.tree import value_of

    context = click.get_current_context()
    try:
        config = read(name, overrides, {FLAGS[one]: _plain(context.params[one]) for one in stated(FLAGS)})
    except InputError as error:  # the processes of a run have not met yet: the first of each machine reports it
        raise click.ClickException(str(error)) from error
    shared = {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}
    found = {one: _unless_empty(value_of(config, key), shared[one]) for one, key in FLAGS.items() if one in shared}
    return config, dataclasses.replace(options, **found)


def _plain(value: Any) -> Any:
    """A flag's value as a key holds it."""
    return "" if value is None else str(value) if isinstance(value, Path) else value


def _unless_empty(value: Any, default: Any) -> Any:
    """A key's value as an option holds it; of an empty key the option's default."""
    if value in (None, ""):
        return default
    return Path(value) if isinstance(default, Path) else value
