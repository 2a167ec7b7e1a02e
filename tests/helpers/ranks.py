"""Forks that find each other as the processes of torchrun do; not a test itself."""

import os
import traceback
from collections.abc import Callable

from torch.distributed import TCPStore

HOST, DIGITS = "127.0.0.1", 5


def fork_ranks(world: int, work: Callable[[int], int]) -> list[int]:
    """Fork the processes of one job, which leave with what `work(rank)` returns; their ids.

    Several meet at a store of the first one, whose port the system chose: no job, of whatever process, takes another's.
    """
    pipe, pids = os.pipe(), []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                store = join(rank, world, *pipe) if world > 1 else None  # noqa: F841 (it serves as long as it is held)
                code = work(rank)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        pids.append(pid)
    for end in pipe:
        os.close(end)
    return pids


def join(rank: int, world: int, reading: int, writing: int) -> TCPStore | None:
    """Set torchrun's variables. The first process makes the store, and tells the others its port through a pipe."""
    store = TCPStore(HOST, 0, is_master=True, wait_for_workers=False) if rank == 0 else None
    if store is not None:
        os.write(writing, f"{store.port:{DIGITS}}".encode() * (world - 1))
    os.close(writing)  # if the first one fails, the others read the end
    port = int(os.read(reading, DIGITS)) if store is None else store.port
    os.close(reading)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world),
        MASTER_ADDR=HOST, MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True",
    )  # fmt: skip
    return store
