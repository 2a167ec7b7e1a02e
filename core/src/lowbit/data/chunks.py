"""Work on parts of a batch in parallel: one thread per part, single-threaded operations inside.

An augmentation is some hundred short operations. Splitting each of them over cores costs a barrier per operation, and
when another process needs a core every barrier waits for it (measured: 40 times slower on two busy cores). So the batch
is split instead. Parts are small enough for the CPU's caches and large enough to hide the cost of the calls.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

CHUNK = 3 << 18  # values per part
Work = Callable[[slice], None]
Run = Callable[[Work, Tensor], None]


def _parts(n: int, values: int, threads: int) -> list[slice]:
    """Even slices of n pictures that hold `values` values together: at least one per thread."""
    k = min(n, max(threads, -(-values // CHUNK)))
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def _single_threaded() -> None:
    """Operations started by this thread use this thread alone."""
    torch.get_num_threads()  # torch sets a new thread's number at its first use: let that be over
    torch.set_num_threads(1)


@contextmanager
def parallel_chunks(device: torch.device) -> Iterator[Run]:
    """A function that runs `work(part)` for all parts of a batch `out`, (V, n, ...), and returns when all are done.

    It uses as many threads as torch would (`torch.get_num_threads()`); a GPU takes the batch whole.
    """
    if device.type != "cpu":
        yield lambda work, out: work(slice(None))
        return
    # Freeing 31 MiB once teaches glibc's malloc to keep what is freed later instead of giving it back to the system:
    # the page faults of fresh temporaries took a third of the time.
    torch.empty(31 << 20, dtype=torch.uint8)
    threads = torch.get_num_threads()

    def serial(work: Work, out: Tensor) -> None:
        for part in _parts(out.shape[1], out.numel(), 1):
            work(part)

    if threads == 1:
        yield serial
        return
    with ThreadPoolExecutor(threads, "lowbit-augment", _single_threaded) as pool:

        def parallel(work: Work, out: Tensor) -> None:
            for _ in pool.map(work, _parts(out.shape[1], out.numel(), threads)):
                pass
            torch.set_num_threads(threads)  # what a new thread of the process starts with; the pool's keep their 1

        yield parallel
