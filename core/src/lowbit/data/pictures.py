"""Sets of pictures, most with classes: decoded in memory, or as files that are read when they are needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lowbit.data.hashing import words
from lowbit.data.tally import Tally
from lowbit.errors import InputError


class MemoryPictures:
    """Small pictures of one size, decoded.

    Attributes:
        name: of the dataset. classes: their names.
        images: (N, 3, H, W), uint8. labels: (N,), int64.
        white: the stored value that means 1.0 (the digits have 16 levels of ink).
    """

    def __init__(self, name: str, classes: Sequence[str], images: Tensor, labels: Tensor, white: int = 255) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.images = images
        self.labels = labels
        self.white = white
        self._copies: dict[torch.device, Tensor] = {images.device: images}

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    def subset(self, index: Tensor) -> "MemoryPictures":
        """The pictures at `index`, (M,), int64, in that order."""
        return MemoryPictures(self.name, self.classes, self.images[index], self.labels[index], self.white)

    def on(self, device: torch.device) -> Tensor:
        """The images on a device, (N, 3, H, W), uint8; copied there once and shared by all loaders."""
        if device not in self._copies:
            self._copies[device] = self.images.to(device)
        return self._copies[device]


class FolderPictures:
    """Picture files of any size; `lowbit.data.decode` reads them in the loader's workers.

    Attributes:
        name: of the dataset. classes: their names; none where the pictures have no labels.
        paths: N files. labels: (N,), int64; -1 where there are no classes.
        unreadable: those that could not be read so far, by whichever loader and process.
    """

    def __init__(self, name: str, classes: Sequence[str], paths: Sequence[Path], labels: Tensor) -> None:
        self.name = name
        self.classes = tuple(classes)
        self.paths = list(paths)
        self.labels = labels
        self.unreadable = Tally(self.paths)

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, index: Tensor) -> "FolderPictures":
        """The pictures at `index`, (M,), int64, in that order."""
        return FolderPictures(self.name, self.classes, [self.paths[i] for i in index.tolist()], self.labels[index])


Pictures = MemoryPictures | FolderPictures


def _rank_in_class(labels: Tensor, seed: int, stream: str) -> tuple[np.ndarray, np.ndarray]:
    """A random place of each picture among its class, (N,), from 0, and the words that decided it, (N,)."""
    y, noise = labels.numpy(), words(np.arange(len(labels)), seed, stream)
    order = np.lexsort((noise, y))
    starts = np.searchsorted(y[order], y[order], side="left")
    rank = np.empty(len(y), dtype=np.int64)
    rank[order] = np.arange(len(y)) - starts
    return rank, noise


def balanced_subset(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Choose `n` pictures, as many of each class as there are (`--limit-train`, `--limit-eval`).

    Args:
        labels: (N,), int64; all alike where there are none, so that the seed alone decides.
        n: pictures to choose; a class that has too few gives all it has.
        seed: the choice is a function of it.

    Returns:
        Positions, (n,), int64, sorted.

    Raises:
        InputError: `n` is not in 1..N.
    """
    if not 1 <= n <= len(labels):
        raise InputError(f"a limit of {n} pictures: the set holds {len(labels)}; give 1 to {len(labels)}")
    rank, noise = _rank_in_class(labels, seed, "limit")
    return torch.from_numpy(np.sort(np.lexsort((noise, rank))[:n]))


def val_split(labels: Tensor, fraction: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Hold out the same fraction of every class (`--val-split`), rounded to whole pictures.

    Args:
        labels: (N,), int64.
        fraction: in (0, 1).
        seed: the choice is a function of it.

    Returns:
        Positions that stay and positions held out, int64, each sorted; every class keeps at least one picture.

    Raises:
        InputError: the fraction is out of range, or so small that no picture is held out; there are no classes.
    """
    if not 0 < fraction < 1:
        raise InputError(f"a validation split of {fraction}: give a fraction between 0 and 1, such as 0.1")
    if bool((labels < 0).any()):
        raise InputError(f"a validation split of {fraction} takes of each class, and these pictures have none: omit it")
    rank, _ = _rank_in_class(labels, seed, "val-split")
    y = labels.numpy()
    count = np.bincount(y)
    held = np.minimum(np.round(count * fraction).astype(np.int64), np.maximum(count - 1, 0))
    out = rank < held[y]
    if not out.any():
        raise InputError(f"a validation split of {fraction} holds out no picture of {len(y)}; give a larger fraction")
    return torch.from_numpy(np.flatnonzero(~out)), torch.from_numpy(np.flatnonzero(out))
