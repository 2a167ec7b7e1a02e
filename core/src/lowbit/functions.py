"""The commands of a method as functions, such as `train(dataset="digits", epochs=2, output="OUT")`.

A function takes what its command takes: by position its arguments (a config first, then `KEY.PATH=VALUE`), by name its
options, with `_` for `-`. Values may be Python's: numbers, paths, lists, True for a flag; None leaves an option out.
The command itself checks them and fills in defaults; errors are `InputError`. Logging is left as the program has it.
Importing a method's package imports neither torch nor click: a function is made when it is asked for.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from lowbit.errors import InputError
from lowbit.outcome import Outcome, listen

if TYPE_CHECKING:
    import click

Function = Callable[..., Outcome]


def lazy_functions(
    package: str, *same: str, **renamed: str
) -> tuple[Callable[[str], Function], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a method's package (PEP 562), whose commands are those of its module `cli`.

    Args:
        package: import name.
        same: functions that are called as their commands are.
        renamed: name of a function = name of its command.
    """
    commands = {**{name: name for name in same}, **renamed}

    def get(name: str) -> Function:
        if name not in commands:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return function_of(package, name, commands[name])

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *commands})

    return get, names


def function_of(package: str, name: str, command_name: str) -> Function:
    """One command as a function."""
    command: click.Command = import_module(f"{package}.cli").cli.commands[command_name]

    def function(*arguments: Any, **options: Any) -> Outcome:
        import click

        with listen(Outcome(f"{package} {command_name}")) as outcome:
            line = line_of(command, f"{package}.{name}", arguments, options)
            try:
                with command.make_context(outcome.command, line) as context:
                    command.invoke(context)
            except click.ClickException as error:
                raise InputError(error.format_message()) from error
        return outcome

    function.__name__ = function.__qualname__ = name
    function.__module__ = package
    function.__doc__ = _documentation(command)
    function.__signature__ = _signature(command)  # type: ignore[attr-defined]
    return function


def line_of(command: "click.Command", name: str, arguments: Sequence[Any], options: Mapping[str, Any]) -> list[str]:
    """The command line that says the same as a call of the function `name`.

    Raises:
        InputError: an unknown name, too many arguments, one given twice, or a flag that is neither True nor False.
    """
    known, places = _keywords(command), _places(command)
    given: list[tuple[click.Parameter, Any]] = []
    for keyword, value in options.items():
        if keyword not in known:
            near = difflib.get_close_matches(keyword, known, n=3) or known
            raise InputError(f"{name} has no option {keyword!r}; there are {', '.join(near)}")
        given.append((known[keyword], value))
    rest = list(arguments)
    for place in places:
        if rest:
            count = len(rest) if place.nargs < 0 else 1
            given.append((place, rest[:count] if place.nargs < 0 else rest[0]))
            rest = rest[count:]
    if rest:
        raise InputError(f"{name} takes {len(places)} arguments by position, not {len(arguments)}: name the options")
    values = dict(given)
    if len(values) < len(given):
        named = [param for param, _ in given]
        twice = next(param for param in named if named.count(param) > 1)
        raise InputError(f"{name}: {_keyword(twice)} is given twice; give it once")
    of_options = [word for param, value in given if _is_option(param) for word in _option(name, param, value)]
    return [
        *of_options,
        "--",
        *(text for place in places if not _is_option(place) for text in _texts(values.get(place))),
    ]


def _is_option(param: "click.Parameter") -> bool:
    return param.param_type_name == "option"


def _word(spelling: str) -> str:
    """A spelling on a command line as a keyword."""
    return spelling.lstrip("-").replace("-", "_")


def _keywords(command: "click.Command") -> dict[str, "click.Parameter"]:
    """Every parameter by each of its names."""
    return {
        _word(spelling): param
        for param in command.params
        for spelling in param.opts
        if spelling.startswith("--") or not _is_option(param)
    }


def _spelling(param: "click.Parameter") -> str:
    """The spelling of an option that its keyword is made of: the one that click names it by, else the first long."""
    long = [spelling for spelling in param.opts if spelling.startswith("--")]
    return next((spelling for spelling in long if _word(spelling) == param.name), (long or param.opts)[0])


def _keyword(param: "click.Parameter") -> str:
    return _word(_spelling(param))


def _places(command: "click.Command") -> list["click.Parameter"]:
    """What may be given by position: a config, then the command's arguments."""
    config = [param for param in command.params if "--config" in param.opts]
    return config + [param for param in command.params if not _is_option(param)]


def _option(name: str, param: "click.Parameter", value: Any) -> list[str]:
    """The words of one option on a command line."""
    spelling = _spelling(param)
    if getattr(param, "is_flag", False):
        if value not in (None, True, False):
            raise InputError(f"{name}: {_keyword(param)}={value!r} is a flag: give True or False")
        return [spelling] if value else []
    texts = _texts(value)
    return [
        f"{spelling}={text}" for text in (texts if getattr(param, "multiple", False) else texts and [",".join(texts)])
    ]


def _texts(value: Any) -> list[str]:
    """A value as a command line has it; of None nothing."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return [os.fspath(value) if isinstance(value, os.PathLike) else str(value)]


def _shown(command: "click.Command") -> list["click.Option"]:
    """The options that `--help` shows, but for a config, which has its place."""
    import click

    places = _places(command)
    return [p for p in command.params if isinstance(p, click.Option) and not p.hidden and p not in places]


def _signature(command: "click.Command") -> inspect.Signature:
    """By position what has a place, by name the rest, with defaults where they are plain values."""
    parameters = [inspect.Parameter("arguments", inspect.Parameter.VAR_POSITIONAL)] if _places(command) else []
    for param in _shown(command):
        plain = isinstance(param.default, str | int | float | os.PathLike | tuple)
        default = param.default if plain else False if param.is_flag else None
        parameters.append(inspect.Parameter(_keyword(param), inspect.Parameter.KEYWORD_ONLY, default=default))
    return inspect.Signature(parameters, return_annotation=Outcome)


def _documentation(command: "click.Command") -> str:
    """The help of the command, and a line for each parameter."""
    import click

    places = ", ".join(param.make_metavar(click.Context(command)) for param in _places(command))
    lines = [inspect.cleandoc(command.help or ""), "", *([f"By position: {places}.", ""] if places else [])]
    lines += [f"- `{_keyword(param)}`" + (f": {param.help}" if param.help else "") for param in _shown(command)]
    return "\n".join([*lines, "", "Returns what was made (`lowbit.outcome.Outcome`)."])
