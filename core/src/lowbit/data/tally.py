"""The unreadable pictures of a set, counted once each by all processes together."""

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch


class Tally:
    """Counts distinct unreadable pictures of one set, over all its loaders and all processes of the run.

    Processes count through the store by which they found each other. That is no collective: a process asks when it
    meets an unreadable picture, wherever the others are. Where there is no store (one process) it counts alone.
    Nothing is saved: a resumed run counts from nothing, and has met every unreadable picture again after one epoch.

    Args:
        paths: the files of the set.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self._seen: set[int] = set()
        self._count = 0

    def add(self, position: int) -> tuple[bool, int]:
        """Note an unreadable picture.

        Returns:
            Whether it is new to this process and to all others, and how many are known.
        """
        if position in self._seen:
            return False, self._count
        self._seen.add(position)
        store = _store()
        if store is None:
            self._count = len(self._seen)
            return True, self._count
        try:
            first = store.add(f"{self._key} {position}", 1) == 1
            self._count = store.add(self._key, int(first))
        except RuntimeError:  # the process that keeps the store has left
            first, self._count = True, max(self._count, len(self._seen))
        return first, self._count

    @cached_property
    def _key(self) -> str:
        """A name of the set that is the same in all processes."""
        names = "\0".join(map(str, self._paths))
        return f"lowbit unreadable {hashlib.blake2b(names.encode(), digest_size=16).hexdigest()}"


def _store() -> Any:
    """The store of the process group, or None."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    return torch.distributed.distributed_c10d._get_default_store()
