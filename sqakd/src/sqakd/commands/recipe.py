"""`sqakd recipe`: the experiments of the authors' run scripts, a YAML file each, as command lines of this program.

`command` and `description`, which says whether labels are read, are no flags; all other entries are.
"""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from lowbit.config.files import chain, locate
from lowbit.errors import InputError

SHIPPED = Path(str(files("sqakd"))) / "configs"


def names() -> list[str]:
    """Of all recipes: script/branch."""
    return sorted(path.relative_to(SHIPPED).with_suffix("").as_posix() for path in SHIPPED.rglob("*.yaml"))


def listed() -> list[str]:
    """A line of each recipe: its name, and what it trains with."""
    return [f"{name}: {_entries(name)['description']}" for name in names()]


def command_of(name: str, more: Sequence[str] = ()) -> list[str]:
    """The command line of a recipe, after the program's name; `more`: options, which replace those of one name.

    Raises:
        InputError: no such recipe.
    """
    if name not in names():
        raise InputError(f"recipe {name!r:.80} is not known: sqakd recipe lists them all")
    values = _entries(name)
    given_too = {text.partition("=")[0] for text in more}
    flags = {f"--{flag}": value for flag, value in values.items() if flag not in ("command", "description")}
    own = (text for flag, value in flags.items() if flag not in given_too for text in (flag, str(value)))
    return [str(values["command"]), *own, *more]


def _entries(name: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for _, given in chain(locate(f"configs/{name}.yaml", SHIPPED, SHIPPED), SHIPPED):
        values |= given
    return values
