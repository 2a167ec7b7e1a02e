"""Work on parts of a batch in parallel: one thread per part, single-threaded operations inside.

An augmentation is some hundred short operations. Splitting each of them over cores costs a barrier per operation, and
when another process needs a core every barrier waits for it (measured: 40 times slower on two busy cores). So the batch
is split instead. Parts are small enough for the CPU's caches and large enough to hide the cost of the calls.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier

import torch
from torch import Tensor

LARGEST, SMALLEST = 3 << 18, 1 << 16  # values per part
MOST_THREADS = 8  # beyond, starting the operations (one thread at a time) takes longer than running them
Work = Callable[[slice], None]
Run = Callable[[Work, Tensor], None]


def parts(n: int, values: int, threads: int) -> list[slice]:
    """Even slices of n pictures that hold `values` values together: one per thread, more if they would be too large."""
    k = min(n, max(1, -(-values // LARGEST), min(threads, values // SMALLEST)))
    return [slice(n * i // k, n * (i + 1) // k) for i in range(k)]


def _single_threaded(started: Barrier) -> None:
    """Operations started by this thread use this thread alone."""
    torch.get_num_threads()  # torch sets a new thread's number at its first use: let that be over
    torch.set_num_threads(1)
    started.wait()


@contextmanager
def parallel_chunks(device: torch.device) -> Iterator[Run]:
    """A function that runs `work(part)` for all parts of a batch `out`, (V, n, ...), and returns when all are done.

    It uses as many threads as torch would (`torch.get_num_threads()`), up to 8; a GPU takes the batch whole.
    """
    if device.type != "cpu":
        yield lambda work, out: work(slice(None))
        return
    # Freeing 31 MiB once teaches glibc's malloc to keep what is freed later instead of giving it back to the system:
    # the page faults of fresh temporaries took a third of the time.
    torch.empty(31 << 20, dtype=torch.uint8)
    wanted = torch.get_num_threads()
    threads = min(wanted, MOST_THREADS)

    def serial(work: Work, out: Tensor) -> None:
        for part in parts(out.shape[1], out.numel(), 1):
            work(part)

    if threads == 1:
        yield serial
        return
    started = Barrier(threads + 1)
    with ThreadPoolExecutor(threads, "lowbit-augment", _single_threaded, (started,)) as pool:
        for _ in range(threads):
            pool.submit(int)
        started.wait()
        torch.set_num_threads(wanted)  # what other new threads of the process start with; the pool's keep their 1

        def parallel(work: Work, out: Tensor) -> None:
            for _ in pool.map(work, parts(out.shape[1], out.numel(), threads)):
                pass

        yield parallel
