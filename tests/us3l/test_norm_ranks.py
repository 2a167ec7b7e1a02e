"""Slimmable batch norm over two processes (`norm_ranks.py`)."""

from typing import Any


def test_two_ranks_with_unequal_batches_equal_one_process(processes: Any) -> None:
    processes.start(world=2, norms=True).wait(0, 0)
