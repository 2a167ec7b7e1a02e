"""How command lines are read, and how a program ends.

Importing this package does not import torch, so that `--help` stays fast. click is bent in three places, since the
original programs were written for argparse: an option may take several values after one flag (`--schedule 150 250`),
spellings of one parameter that disagree are an error, and every error is one line on stderr with the exit code of
`lowbit.errors`.
"""

import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click

from lowbit.errors import EXIT_DONE, EXIT_INPUT, EXIT_STOPPED, InputError, Stopped
from lowbit.train.console import configure_logging

Flags = Mapping[str, click.Option]


class Real(click.FloatRange):
    """A finite float in a range; click's own lets `nan` through every range."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or click's usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class Several(click.Option):
    """An option that takes one or more values after one flag, as argparse's `nargs="+"`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})


def _is_value(token: str) -> bool:
    return not token.startswith("-") or token[1:2].isdigit() or token[1:2] == "."


def _occurrences(
    ctx: click.Context, args: Sequence[str], flags: Flags
) -> Iterator[tuple[list[str], click.Option | None]]:
    """Cut a command line at its options: (tokens of one occurrence, its option; None for anything else).

    Raises:
        click.UsageError: an option that needs a value is followed by another option.
    """
    position = 0
    while position < len(args):
        token = args[position]
        if token == "--":
            yield from (([rest], None) for rest in args[position:])
            return
        name, joined, _ = token.partition("=") if token.startswith("--") else (token[:2], token[2:], "")
        option = flags.get(token) or flags.get(name)
        if token in flags:
            name, joined = token, ""
        end = position + 1
        if option is not None and not option.is_flag and not option.count:
            if not joined and end < len(args):
                if args[end] in flags:
                    raise click.UsageError(f"Option {token!r} needs a value, not the option {args[end]!r}.", ctx)
                end += 1
            while isinstance(option, Several) and end < len(args) and _is_value(args[end]):
                end += 1
        yield list(args[position:end]), option
        position = end


class Command(click.Command):
    """A command whose options may take several values, and whose spellings of one parameter must agree."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Rewrite the command line into what click reads; see the class.

        Raises:
            click.UsageError: an option was given twice with different values.
        """
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        flags = {flag: option for option in options for flag in (*option.opts, *option.secondary_opts)}
        plain: list[str] = []
        given: dict[str, tuple[str, Any]] = {}
        for tokens, option in _occurrences(ctx, args, flags):
            if not isinstance(option, Several):
                plain += tokens
            else:
                first = 1 if "=" in tokens[0] else 2
                plain += tokens[:first]
                for value in tokens[first:]:
                    plain += [option.opts[0], value]
            if option is not None and option.name and not option.multiple and not option.is_flag:
                self._agree(ctx, option, " ".join(tokens), given)
        return super().parse_args(ctx, plain)

    @staticmethod
    def _agree(ctx: click.Context, option: click.Option, spelled: str, given: dict[str, tuple[str, Any]]) -> None:
        value: Any = spelled
        for flag in sorted(option.opts, key=len, reverse=True):
            if spelled.startswith(flag):
                value = spelled[len(flag) :].lstrip(" =")
                break
        value = option.type_cast_value(ctx, value)
        name = option.name or ""
        if name in given and given[name][1] != value:
            raise click.UsageError(
                f"{given[name][0]!r} and {spelled!r} disagree about one parameter; give one of them."
            )
        given[name] = (spelled, value)


class Group(click.Group):
    """A program: its commands are `Command`s, its errors one line, its exit codes those of `lowbit.errors`.

    Without a command it prints its help and is done.
    """

    command_class = Command

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"invoke_without_command": True, **kwargs})

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command of the line."""
        result = super().invoke(ctx)
        if ctx.invoked_subcommand is None:
            click.echo(ctx.get_help())
        return result

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run one command line and leave the process with its exit code (whatever `standalone_mode` says)."""
        configure_logging(self.name or "lowbit")
        try:
            result = super().main(*args, **{**kwargs, "standalone_mode": False})
            code = result if isinstance(result, int) else EXIT_DONE
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else self.name
            code = fail(f"{error.format_message()} ({command} --help lists what is allowed)", usage=True)
        except click.ClickException as error:
            code = fail(error.format_message(), usage=True)
        except InputError as error:
            code = fail(str(error))
        except (Stopped, click.Abort, KeyboardInterrupt) as stop:
            click.echo(f"stopped: {' '.join(str(stop).split()) or 'by a signal'}", err=True)
            code = EXIT_STOPPED
        sys.exit(code)


def fail(message: str, *, usage: bool = False) -> int:
    """Print a one-line error, once for all processes that find it; returns the exit code of bad input.

    A wrong command line (`usage`) is told by the first process of each machine, since all were given the same.
    """
    process = sys.modules.get("lowbit.train.process")  # not imported: this process has not met others yet
    if os.environ.get("LOCAL_RANK", "0") == "0" if usage else process is None or process.first_to_say(message):
        click.echo(f"error: {' '.join(message.split())}", err=True)
    return EXIT_INPUT
