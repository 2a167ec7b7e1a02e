"""Keys that a command reads, and keys that it accepts without effect: setting one of these gives a warning."""

import functools
import logging
import operator
import os
from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from lowbit.config.tree import dump_config, leaves

log = logging.getLogger(__name__)


def paths(sections: Mapping[str, str]) -> set[str]:
    """Full paths out of a table {section: its keys, separated by spaces}; the section "" is the root."""
    return {f"{section}.{key}".lstrip(".") for section, keys in sections.items() for key in keys.split()}


def is_unused(key: str, unused: Collection[str]) -> bool:
    """Whether a key, or a section that it stands in, is among those without effect."""
    return any(key == one or key.startswith(f"{one}.") for one in unused)


def used_values(config: BaseModel, unused: Collection[str]) -> dict[str, Any]:
    """The plain values of all other keys by full path, in the order of the tree."""
    plain, used = dump_config(config), (key for key in leaves(type(config)) if not is_unused(key, unused))
    return {key: functools.reduce(operator.getitem, key.split("."), plain) for key in used}


def warn_unused(given: Mapping[str, str], unused: Collection[str]) -> None:
    """List the keys without effect that were given, in one warning; by the first process of a run alone.

    Args:
        given: the keys that were set, and who set each: "config NAME", or "the command line".
        unused: keys and sections without effect.
    """
    found = {who: [key for key in given if given[key] == who and is_unused(key, unused)] for who in given.values()}
    said = [f"{who}: {', '.join(keys)}" for who, keys in found.items() if keys]
    if said and os.environ.get("RANK", "0") == "0":  # the processes of a run have not met yet; they read the same
        log.warning("keys that have no effect in this command, set by %s", "; by ".join(said))
