"""Reading picture files, in worker processes or in this one: decode, apply the geometry, name what cannot be read."""

import atexit
import multiprocessing
import signal
import struct
import sys
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lowbit.data.hashing import Draws, words
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError

UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
TRIES = 16  # replacements looked for before giving up


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


def read_picture(path: Path) -> Image.Image:
    """Decode a file to RGB (grey, palette and CMYK pictures are converted).

    Raises:
        One of UNREADABLE: missing, truncated, or no picture.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata does not matter here
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("its pixels are floats of unknown range")
            if image.mode.startswith("I"):  # 16 bits of grey, which PIL would clip
                grey = (np.asarray(image).astype(np.float64) / 257).clip(0, 255).round()
                return Image.fromarray(grey.astype("u1")).convert("RGB")
            return image.convert("RGB")


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
            except UNREADABLE as error:
                bad.append((candidate, str(error).splitlines()[0] if str(error) else type(error).__name__))
        return None

    def _views(self, images: list[Image.Image], index: NDArray[np.int64], epoch: int) -> Tensor:
        geometry = self.recipe.geometry
        height = np.array([float(image.height) for image in images])
        width = np.array([float(image.width) for image in images])
        h, w = geometry.size(images[0].height, images[0].width)
        out = np.empty((self.n_views, len(images), h, w, 3), dtype=np.uint8)
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
        return torch.from_numpy(out).permute(0, 1, 4, 2, 3).contiguous()

    def __getitem__(self, task: Task) -> Read:
        bad: list[tuple[int, str]] = []
        found = [self._decode(int(i), task.epoch, bad) for i in task.where]
        index = np.array([hit[0] for hit in found if hit], dtype=np.int64)
        if len(index) == 0 or (self.replace and len(index) < len(found)):
            message = f"no readable picture was found in the place of {self.pictures.paths[bad[0][0]]} ({bad[0][1]})"
            return Read(torch.empty(0), torch.from_numpy(index), bad, message if self.replace else None)
        try:
            views = self._views([hit[1] for hit in found if hit], index, task.epoch)
        except InputError as error:
            return Read(torch.empty(0), torch.from_numpy(index), bad, str(error))
        return Read(views, torch.from_numpy(index), bad)


def _ignore_signals(_: int) -> None:
    """Workers outlive a signal to the process group, so that the parent can save; they end when it does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _no_stop_signals() -> Iterator[None]:
    """Hold stop signals back while workers are forked: they start with them blocked, until they ignore them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows sends none
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
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
