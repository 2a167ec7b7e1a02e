"""Several operations on one tensor, part by part: on a CPU a part stays in the caches, which saves passes."""

import torch
from torch import Tensor

PART = 1 << 19  # values: 2 MiB, in which several threads share the cost of each operation's start


def in_parts(x: Tensor) -> bool:
    """Whether to work through a tensor part by part: on a CPU, where it lies in memory without gaps."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x.device.type == "cpu" and dense and not torch.compiler.is_compiling()


def parts(x: Tensor) -> tuple[Tensor, ...]:
    """The tensor in the order of its memory, cut into runs of PART values that are views of it."""
    return x.as_strided((x.numel(),), (1,)).split(PART)


def scratch(x: Tensor) -> Tensor:
    """A tensor of the size of the largest of its `parts`."""
    return x.new_empty(min(PART, x.numel()))
