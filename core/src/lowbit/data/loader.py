"""Loaders: seeded, sharded, resumable batches of augmented pictures on the compute device.

A batch is a function of (seed, epoch, its number) alone: the permutation and all draws are hashes of them, so neither
the number of workers nor the number of ranks nor a resume changes what is shown. No global random state is touched.
"""

import logging
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowbit.data.batch import Batch
from lowbit.data.chunks import Run, parallel_chunks
from lowbit.data.decode import Read, Reader, Task, read_batches
from lowbit.data.geometry import Table
from lowbit.data.hashing import Draws, permutation
from lowbit.data.pictures import FolderPictures, MemoryPictures, Pictures
from lowbit.data.recipe import Recipe
from lowbit.errors import InputError

log = logging.getLogger(__name__)
DRAWN_AHEAD = 1024  # pictures


def _rows(tables: list[Table], part: slice) -> list[Table]:
    """The rows of some pictures, (V n, k), of tables (V, B, k)."""
    mine = (table[:, part] for table in tables)
    return [table.reshape(table.shape[0] * table.shape[1], table.shape[2]) for table in mine]


class _Source:
    """Turns picture positions into augmented views; shared by the loaders."""

    def __init__(
        self,
        pictures: Pictures,
        recipe: Recipe,
        seed: int,
        n_views: int,
        workers: int,
        device: torch.device | str,
        dtype: torch.dtype,
        max_corrupt: float,
        labels: bool,
        channels_last: bool,
        replace: bool,
    ) -> None:
        self.pictures, self.recipe, self.seed, self.n_views = pictures, recipe, seed, n_views
        self.workers, self.device, self.dtype = workers, torch.device(device), dtype
        self.labels = labels and bool(pictures.classes)
        self.max_corrupt, self.replace = max_corrupt, replace
        self.format = torch.channels_last if channels_last else torch.contiguous_format

    def batches(self, tasks: list[Task]) -> Iterator[Batch]:
        """One batch per task; of a folder, unreadable pictures are replaced or left out."""
        with parallel_chunks(self.device) as run:
            if isinstance(self.pictures, MemoryPictures):
                yield from self._memory_batches(self.pictures, tasks, run)
                return
            reader = Reader(self.pictures, self.recipe, self.seed, self.n_views, self.replace)
            reads = read_batches(reader, tasks, self.workers, self.device.type == "cuda")
            with closing(reads):  # an error ends the workers at once, whoever holds its traceback
                for task, read in zip(tasks, reads, strict=True):
                    self._note(self.pictures, read)
                    if len(read.where):
                        yield self._batch(self._augment_read(read, task.epoch, run), read.where)

    def _batch(self, views: tuple[Tensor, ...], index: Tensor) -> Batch:
        label = self.pictures.labels[index].to(self.device) if self.labels else None
        return Batch(views, index.to(self.device), label)

    def _new(self, n: int, height: int, width: int) -> Tensor:
        """Room for a batch, (V, n, 3, h, w)."""
        shape = (self.n_views * n, 3, height, width)
        out = torch.empty(shape, device=self.device, dtype=self.dtype, memory_format=self.format)
        return out.view(self.n_views, n, 3, height, width)

    def _memory_batches(self, pictures: MemoryPictures, tasks: list[Task], run: Run) -> Iterator[Batch]:
        """Draws are made for several batches at a time: numpy's calls cost more than its numbers."""
        ahead = max(1, DRAWN_AHEAD // max(1, len(tasks[0].where))) if tasks else 1
        for group in (tasks[k : k + ahead] for k in range(0, len(tasks), ahead)):
            draws = Draws(np.concatenate([t.where for t in group]), self.seed, group[0].epoch, range(self.n_views))
            tables = [self.recipe.draw_geometry(draws, *pictures.size), *self.recipe.draw_colour(draws)]
            tables = [table.reshape(self.n_views, len(draws.index), table.shape[1]) for table in tables]
            start = 0
            for task in group:
                mine = [table[:, start : start + len(task.where)] for table in tables]
                yield self._batch(self._augment_memory(pictures, task, mine, run), torch.from_numpy(task.where))
                start += len(task.where)

    def _augment_memory(
        self, pictures: MemoryPictures, task: Task, tables: list[Table], run: Run
    ) -> tuple[Tensor, ...]:
        images, where = pictures.on(self.device), torch.from_numpy(task.where).to(self.device)
        out = self._new(len(where), *self.recipe.geometry.size(*pictures.size))

        def augment(part: slice) -> None:
            geometry, *colour = _rows(tables, part)
            self.recipe.batch_(out[:, part], images.index_select(0, where[part]), pictures.white, geometry, colour)

        run(augment, out)
        return out.unbind()

    def _augment_read(self, read: Read, epoch: int, run: Run) -> tuple[Tensor, ...]:
        raw = read.views.to(self.device, non_blocking=True)
        out = self._new(raw.shape[1], *raw.shape[3:])
        draws = Draws(read.where.numpy(), self.seed, epoch, range(self.n_views))
        tables = [table.reshape(*raw.shape[:2], table.shape[1]) for table in self.recipe.draw_colour(draws)]

        def augment(part: slice) -> None:
            self.recipe.finish_(out[:, part], raw[:, part].flatten(0, 1), 255, _rows(tables, part))

        run(augment, out)
        return out.unbind()

    def _note(self, pictures: FolderPictures, read: Read) -> None:
        """Name pictures that could not be read, once each, and count them against the limit."""
        done = "another is shown instead" if self.replace else "it is left out"
        for position, reason in read.bad:
            first, count = pictures.unreadable.add(position)
            if first:
                log.warning("unreadable picture %s (%s), number %d; %s", pictures.paths[position], reason, count, done)
            if count > self.max_corrupt * len(pictures):
                raise InputError(
                    f"{count} of {len(pictures)} pictures of {pictures.name} are unreadable, the last "
                    f"{pictures.paths[position]}; at most {self.max_corrupt:g} of them may be: repair the data or "
                    "raise --max-corrupt"
                )
        if read.error is not None:
            raise InputError(read.error)


class Loader:
    """Training batches.

    Rank r of W takes the pictures [n r / W, n (r + 1) / W) of each global batch of n; the last one of an epoch may be
    smaller. `Batch.share` makes the mean over ranks a mean over pictures.

    Args:
        pictures: in memory (augmented wholly on the device) or files (decoded and cropped in the workers).
        recipe: drawn for each view.
        global_batch: pictures per step, over all ranks.
        seed: of the order and the draws.
        n_views: augmented views per picture.
        shuffle: a new order each epoch, else the dataset's.
        drop_last: leave a smaller last batch out.
        workers: processes that read files; pictures in memory need none.
        rank: this process, of `world`.
        world: number of processes.
        device: where batches are augmented and left.
        dtype: float32 or float64.
        max_corrupt: tolerated fraction of unreadable files, of all that any process has met since it started
            (`lowbit.data.tally`). Each is named in the log once, and another picture, a function of (seed, epoch,
            picture), is shown instead.
        labels: False leaves `Batch.label` None, as pictures without classes do.
        channels_last: memory format of the views.

    Raises:
        InputError: a batch would be empty, or empty on a rank. While iterating: too many unreadable pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        recipe: Recipe,
        *,
        global_batch: int,
        seed: int,
        n_views: int = 1,
        shuffle: bool = True,
        drop_last: bool = False,
        workers: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        max_corrupt: float = 0.001,
        labels: bool = True,
        channels_last: bool = False,
    ) -> None:
        self.pictures, self.recipe, self.global_batch, self.seed = pictures, recipe, global_batch, seed
        self.n_views, self.shuffle, self.drop_last, self.rank, self.world = n_views, shuffle, drop_last, rank, world
        if global_batch < 1 or len(self) == 0:
            raise InputError(
                f"batches of {global_batch} from {len(pictures)} pictures of {pictures.name}: there is no whole batch; "
                f"give a batch size from 1 to {len(pictures)}"
            )
        if self.last_batch < world:
            raise InputError(
                f"the last batch of an epoch holds {self.last_batch} of {len(pictures)} pictures, fewer than the "
                f"{world} processes; choose a batch size other than {global_batch} or fewer processes"
            )
        self._source = _Source(
            pictures, recipe, seed, n_views, workers, device, dtype, max_corrupt, labels, channels_last, replace=True
        )

    def __len__(self) -> int:
        """Steps per epoch."""
        n = len(self.pictures)
        return n // self.global_batch if self.drop_last else -(-n // self.global_batch)

    @property
    def last_batch(self) -> int:
        """Pictures in the last global batch of an epoch."""
        return min(self.global_batch, len(self.pictures) - (len(self) - 1) * self.global_batch)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        n = len(self.pictures)
        return permutation(n, self.seed, "order", epoch) if self.shuffle else np.arange(n)

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on (resume): this rank's part of each, or the `whole` of each."""
        order, tasks, shares = self._order(epoch), [], []
        rank, world = (0, 1) if whole else (self.rank, self.world)
        for step in range(start, len(self)):
            together = order[step * self.global_batch : (step + 1) * self.global_batch]
            n = len(together)
            mine = together[n * rank // world : n * (rank + 1) // world]
            tasks.append(Task(mine, epoch))
            shares.append(len(mine) * world / n)
        for batch, share in zip(self._source.batches(tasks), shares, strict=True):
            yield batch._replace(share=share)


class EvalLoader:
    """Evaluation batches: every picture once, in order; rank r of W takes the whole batches r, r + W, ...

    Args:
        pictures: in memory or files.
        recipe: usually without randomness; otherwise its draws are those of epoch 0 and `seed`.
        batch_size: pictures per batch; the last may be smaller.
        seed: of the draws.
        rank: this process, of `world`.
        world: number of processes.
        device: where batches are left.
        dtype: float32 or float64.
        workers: processes that read files.
        max_corrupt: tolerated fraction of unreadable files, as for `Loader`; each is named in the log and left out.
        channels_last: memory format of the views.

    Raises:
        InputError: the batch size is not positive. While iterating: too many unreadable pictures.
    """

    def __init__(
        self,
        pictures: Pictures,
        recipe: Recipe,
        *,
        batch_size: int,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        workers: int = 0,
        max_corrupt: float = 0.001,
        channels_last: bool = False,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"an evaluation batch of {batch_size} pictures: give 1 or more")
        self.pictures, self.batch_size = pictures, batch_size
        order, starts = np.arange(len(pictures)), range(rank * batch_size, len(pictures), world * batch_size)
        self._tasks = [Task(order[start : start + batch_size], 0) for start in starts]
        self._source = _Source(
            pictures, recipe, seed, 1, workers, device, dtype, max_corrupt, True, channels_last, replace=False
        )

    def __len__(self) -> int:
        """Batches of this rank."""
        return len(self._tasks)

    def __iter__(self) -> Iterator[Batch]:
        return self._source.batches(self._tasks)
