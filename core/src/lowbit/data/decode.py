"""Batches of picture files, in worker processes or in this one: decode, apply the geometry, name the unreadable."""

import atexit
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowbit.data.hashing import Draws, words
from lowbit.data.picture_file import UnreadableError, read_picture
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import Recipe
from lowbit.errors import STOP_SIGNALS, InputError

TRIES = 16  # replacements looked for before giving up
HELD = 2**24  # pixels decoded before views are cut out of them: 64 MiB


class Task(NamedTuple):
    """One batch to read: picture positions (B,), int64, and the epoch, of which the draws are a function."""

    where: NDArray[np.int64]
    epoch: int


class Read(NamedTuple):
    """A batch that was read.

    Attributes:
        views: (V, B', 3, h, w), uint8, geometry done. where: positions of the pictures shown, (B',), int64.
        bad: position and reason of each picture that could not be read.
        error: the user's input cannot be used at all; said by the main process.
    """

    views: Tensor
    where: Tensor
    bad: list[tuple[int, str]]
    error: str | None = None


class Reader(Dataset[Read]):
    """Maps a `Task` to a `Read`; what a loader's workers run.

    Args:
        pictures: the files. recipe: its geometry is applied here.
        seed: of the draws. n_views: per picture.
        replace: put another picture in the place of an unreadable one (training), else leave it out (evaluation).
    """

    def __init__(self, pictures: FolderPictures, recipe: Recipe, seed: int, n_views: int, replace: bool) -> None:
        self.pictures, self.recipe, self.seed, self.n_views, self.replace = pictures, recipe, seed, n_views, replace

    def _substitutes(self, index: int, epoch: int) -> Iterator[int]:
        """Pictures to try in the place of `index`: a function of (seed, epoch, index)."""
        for attempt in range(TRIES):
            word = words(np.array([index]), self.seed, epoch, "substitute", attempt)[0]
            yield int(word % np.uint64(len(self.pictures)))

    def _decode(self, index: int, epoch: int, bad: list[tuple[int, str]]) -> tuple[int, Image.Image] | None:
        for candidate in chain([index], self._substitutes(index, epoch) if self.replace else ()):
            try:
                return candidate, read_picture(self.pictures.paths[candidate])
            except UnreadableError as error:
                bad.append((candidate, str(error)))
        return None

    def _groups(self, task: Task, bad: list[tuple[int, str]]) -> Iterator[list[tuple[int, Image.Image]]]:
        """Decoded pictures with their positions, as many at a time as may be held."""
        group: list[tuple[int, Image.Image]] = []
        held = 0
        for i in task.where:
            hit = self._decode(int(i), task.epoch, bad)
            if hit is None:
                continue
            group.append(hit)
            held += hit[1].width * hit[1].height
            if held > HELD:
                yield group
                group, held = [], 0
        if group:
            yield group

    def _cut(self, images: list[Image.Image], index: NDArray[np.int64], epoch: int, out: NDArray[np.uint8]) -> None:
        """Write the views of some pictures to `out`, (V, B, h, w, 3)."""
        geometry, (h, w) = self.recipe.geometry, out.shape[2:4]
        height = np.array([float(image.height) for image in images])
        width = np.array([float(image.width) for image in images])
        for view in range(self.n_views):
            table = geometry.draw(Draws(index, self.seed, epoch, (view,), "geometry"), height, width)
            for i, image in enumerate(images):
                shown = np.asarray(geometry.picture(image, table[i]))
                if shown.shape != (h, w, 3):
                    raise InputError(
                        f"{self.pictures.paths[index[i]]} shows {shown.shape[0]}x{shown.shape[1]} pixels where {h}x{w} "
                        "are wanted; pictures of different sizes need a recipe that resizes them"
                    )
                out[view, i] = shown

    def _read(self, task: Task, bad: list[tuple[int, str]]) -> Read:
        index, out = np.empty(0, dtype=np.int64), np.empty((self.n_views, 0, 0, 0, 3), dtype=np.uint8)
        for group in self._groups(task, bad):
            images, start = [image for _, image in group], len(index)
            index = np.append(index, [position for position, _ in group])
            if start == 0:
                h, w = self.recipe.geometry.size(images[0].height, images[0].width)
                out = np.empty((self.n_views, len(task.where), h, w, 3), dtype=np.uint8)
            self._cut(images, index[start:], task.epoch, out[:, start : len(index)])
        if len(index) == 0 or (self.replace and len(index) < len(task.where)):
            message = f"no readable picture was found in the place of {self.pictures.paths[bad[0][0]]} ({bad[0][1]})"
            return Read(torch.empty(0), torch.from_numpy(index), bad, message if self.replace else None)
        views = torch.from_numpy(out[:, : len(index)]).permute(0, 1, 4, 2, 3).contiguous()
        return Read(views, torch.from_numpy(index), bad)

    def __getitem__(self, task: Task) -> Read:
        bad: list[tuple[int, str]] = []
        try:
            return self._read(task, bad)
        except InputError as error:
            return Read(torch.empty(0), torch.empty(0, dtype=torch.int64), bad, str(error))


def _ignore_signals(_: int) -> None:
    """Workers outlive a signal to the process group, so that the parent can save; they end when it does."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _no_stop_signals() -> Iterator[None]:
    """Hold stop signals back while workers are forked: they start with them blocked, until they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows sends none
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def read_batches(reader: Reader, tasks: Sequence[Task], workers: int, pin: bool) -> Generator[Read]:
    """Read batches in order; the same for any number of workers.

    Worker processes end with the iterator, also when it is dropped early, and when the interpreter ends while someone
    (a traceback) still holds it: they ignore SIGTERM, so multiprocessing's own way of ending them would wait forever.
    No global random state is read: the generator given to DataLoader keeps it from drawing a seed.
    """
    if workers == 0:
        for task in tasks:
            yield reader[task]
        return
    loader: DataLoader[Read] = DataLoader(
        reader,
        batch_size=None,
        sampler=tasks,
        num_workers=workers,
        worker_init_fn=_ignore_signals,
        generator=torch.Generator(),
        pin_memory=pin,
        multiprocessing_context=multiprocessing.get_context("fork" if sys.platform == "linux" else None),
    )
    with warnings.catch_warnings(), _no_stop_signals():
        # Python 3.12 warns when a process with threads forks; workers use no lock that a thread of ours may hold.
        warnings.simplefilter("ignore", DeprecationWarning)
        iterator = iter(loader)
    close = iterator._shutdown_workers  # type: ignore[attr-defined]
    atexit.register(close)
    try:
        yield from iterator
    finally:
        atexit.unregister(close)
        close()
