"""Rows of all ranks: three real processes equal one; on one process nothing is moved."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from lowbit.losses.ranks import Ranks, Shuffle, gather_rows, ranks_of


def test_three_ranks_of_unequal_parts_equal_one_process(tmp_path: Path) -> None:
    """Gathered NT-Xent with its gradient, the queue, the key shuffle, the activations' ranges."""
    program = Path(__file__).resolve().parent / "three_ranks.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(program), str(tmp_path)], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_on_one_process_nothing_is_moved() -> None:
    x, layout = torch.randn(5, 2), ranks_of(5)
    shuffle = Shuffle(layout, torch.Generator().manual_seed(0))
    assert layout == Ranks((5,)) and gather_rows(x, layout) is x
    assert torch.equal(shuffle.here(x), x) and torch.equal(shuffle.back(x), x)
