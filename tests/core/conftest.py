"""What all tests of lowbit share."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The nets are small, and on a busy machine two threads wait for each other: they take six times as long."""
    torch.set_num_threads(1)
