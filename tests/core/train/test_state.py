"""What of a run goes into a checkpoint."""

from typing import NamedTuple

import torch
from torch import Tensor

from lowbit.train.state import on_cpu


class Pair(NamedTuple):
    first: Tensor
    rest: list[Tensor]


def test_tensors_inside_named_tuples_go_to_the_cpu() -> None:
    here = torch.ones(2, requires_grad=True)
    found = on_cpu({"a": Pair(here, [here]), "b": (here, 3)})
    assert isinstance(found["a"], Pair) and not found["a"].first.requires_grad
    assert torch.equal(found["a"].rest[0], here) and found["b"][1] == 3 and type(found["b"]) is tuple
