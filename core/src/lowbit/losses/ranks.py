"""Rows of all ranks in one place: gathered with their gradient, or shuffled between ranks.

Rank r of W holds rows n r / W to n (r + 1) / W of a batch of n pictures (`lowbit.data.loader`), so the sizes follow
from n without asking the others.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn


class Ranks(NamedTuple):
    """How a batch lies on the ranks.

    Attributes:
        sizes: rows of each rank.
        rank: this one.
    """

    sizes: tuple[int, ...]
    rank: int = 0

    @property
    def start(self) -> int:
        """This rank's first row among all."""
        return sum(self.sizes[: self.rank])


def ranks_of(rows: int, share: float = 1.0) -> Ranks:
    """The layout of the batch whose part here has `rows` rows and a `share` of rows * world / n (`Batch.share`)."""
    if not (dist.is_available() and dist.is_initialized()):
        return Ranks((rows,))
    world = dist.get_world_size()
    n = round(rows * world / share)
    return Ranks(tuple(n * (r + 1) // world - n * r // world for r in range(world)), dist.get_rank())


class _Gather(torch.autograd.Function):
    """Rows of all ranks; every rank's loss depends on them, so dx = the sum over ranks of this rank's rows of dy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Ranks) -> Tensor:
        ctx.layout = layout
        longest = max(layout.sizes)
        padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in layout.sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, layout.sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        summed, layout = grads[0].clone(memory_format=torch.contiguous_format), ctx.layout
        dist.all_reduce(summed)
        return summed[layout.start : layout.start + layout.sizes[layout.rank]], None


def gather_rows(x: Tensor, layout: Ranks) -> Tensor:
    """The rows (B, ...) of all ranks, in their order; differentiable. `x` itself on one rank.

    With the mean of gradients over ranks (DDP) this gives the gradient of the mean over ranks of the losses.
    """
    if len(layout.sizes) == 1:
        return x
    y: Tensor = _Gather.apply(x, layout)
    return y


class Shuffle:
    """MoCo's key shuffle: each rank's batch norm sees pictures of all ranks, so that it cannot tell the positive pair.

    He et al., "Momentum Contrast", CVPR 2020 (arXiv 1911.05722), Sec. 3.3. On one rank nothing is moved.

    Args:
        layout: how the batch lies on the ranks.
        generator: the same on all ranks (`Clock.generator("shuffle")`).
    """

    def __init__(self, layout: Ranks, generator: torch.Generator) -> None:
        self.layout = layout
        self.order = torch.randperm(sum(layout.sizes), generator=generator)

    def here(self, x: Tensor) -> Tensor:
        """This rank's rows of the shuffled batch, (B, ...) -> the same shape, without gradient."""
        return self._taken(x, self.order)

    def back(self, y: Tensor) -> Tensor:
        """Undo `here` for its results, (B, ...) -> the same shape, without gradient."""
        return self._taken(y, self.order.argsort())

    def _taken(self, x: Tensor, order: Tensor) -> Tensor:
        start, size = self.layout.start, self.layout.sizes[self.layout.rank]
        if len(self.layout.sizes) == 1:
            return x.detach()
        return gather_rows(x.detach(), self.layout)[order[start : start + size].to(x.device)]


@torch.no_grad()
def shuffled_keys(encoder: nn.Module, x: Tensor, layout: Ranks, generator: torch.Generator) -> Tensor:
    """Outputs of a key encoder whose batch norm sees a shuffled batch, (B, C, H, W) -> (B, D), without gradient.

    Arguments are those of `Shuffle`, the encoder and this rank's pictures.
    """
    shuffle = Shuffle(layout, generator)
    return shuffle.back(encoder(shuffle.here(x)))
