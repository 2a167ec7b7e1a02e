"""How command lines are read.

Importing this package does not import torch, so that `--help` stays fast. click is bent in two places, since the
original programs were written for argparse: an option may take several values after one flag (`--schedule 150 250`),
and spellings of one parameter that disagree are an error.
"""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from lowbit.options import MOST, MOST_REAL, MOST_SEED, MOST_WORKERS
from lowbit.paths import user_path
from lowbit.train import console

COUNT, MANY = click.IntRange(1, MOST), click.IntRange(0, MOST)
SEED, WORKER_COUNT = click.IntRange(0, MOST_SEED), click.IntRange(0, MOST_WORKERS)
Flags = Mapping[str, click.Option]


class Real(click.FloatRange):
    """A finite float in a range, up to `MOST_REAL` where nothing else is said; click's own lets `nan` through."""

    def __init__(self, min: float | None = None, max: float = MOST_REAL, **more: bool) -> None:
        super().__init__(min, max, **more)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, or click's usage error."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


class UserPath(click.Path):
    """A path in which `~` is the home folder; arguments are those of `click.Path`."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path_type=Path, **kwargs)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path, or click's usage error."""
        try:
            return super().convert(user_path(os.fspath(value)), param, ctx)
        except ValueError as error:
            self.fail(f"{value!r} {error}", param, ctx)


class Several(click.Option):
    """An option that takes one or more values after one flag, as argparse's `nargs="+"`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "multiple": True})


class Last(click.Option):
    """An option of which the last occurrence counts, as argparse has it, whatever the ones before it say."""


class Switch(click.Option):
    """A flag that an original program gave a value (`--flag True`): alone it is the value `alone`."""

    def __init__(self, *args: Any, alone: str = "True", **kwargs: Any) -> None:
        super().__init__(*args, **{"type": click.BOOL, "metavar": "[True|False]", **kwargs})
        self.alone = alone

    def takes(self, token: str, positional: bool) -> bool:
        """Whether the token after the flag is its value; one that is none of them is refused then.

        Where a command has arguments (`positional`) such a one is theirs, but after a flag whose values are names only
        where there is such a file.
        """
        try:
            self.type.convert(token, self, None)
        except click.UsageError:
            named = isinstance(self.type, click.Choice) and not os.path.exists(token)  # noqa: PTH110 (any token)
            return _is_value(token) and (not positional or named)
        return True


def _is_value(token: str) -> bool:
    return not token.startswith("-") or token[1:2].isdigit() or token[1:2] == "."


def _occurrences(
    ctx: click.Context, args: Sequence[str], flags: Flags
) -> Iterator[tuple[list[str], click.Option | None]]:
    """Cut a command line at its options: (tokens of one occurrence, its option; None for anything else).

    Raises:
        click.UsageError: an option that needs a value is followed by another option.
    """
    positional = any(isinstance(param, click.Argument) for param in ctx.command.params)
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
            follows = args[end] if end < len(args) else "-"
            if isinstance(option, Switch) and not joined and not option.takes(follows, positional):
                yield [f"{token}={option.alone}"], option
                position = end
                continue
            if not joined and end < len(args):
                if args[end] in flags:
                    raise click.UsageError(f"Option {token!r} needs a value, not the option {args[end]!r}.", ctx)
                end += 1
            while isinstance(option, Several) and end < len(args) and _is_value(args[end]):
                end += 1
        yield list(args[position:end]), option
        position = end


class Command(click.Command):
    """A command whose options may take several values, and whose spellings of one parameter must agree.

    Args:
        args, kwargs: click's.
        loads: what it does first, which takes time.
    """

    def __init__(self, *args: Any, loads: str = "torch and the net", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.loads = loads

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
            if (
                option is not None
                and option.name
                and not (option.multiple or option.is_flag or isinstance(option, Last))
            ):
                self._agree(ctx, option, " ".join(tokens), given)
        return super().parse_args(ctx, plain)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; a terminal shows meanwhile what is waited for."""
        console.show(f"{ctx.command_path}: loading {self.loads} …")
        try:
            return super().invoke(ctx)
        finally:
            console.show()

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
