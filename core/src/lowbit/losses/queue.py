"""The queue of keys that serve as negatives (He et al., "Momentum Contrast", CVPR 2020, arXiv 1911.05722, Sec. 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.losses.ranks import Ranks, gather_rows


class KeyQueue(nn.Module):
    """The last K keys, as columns of unit length; the oldest are overwritten.

    Args:
        dim: D.
        length: K.
        generator: of the random unit vectors it starts with, the same on all ranks.

    Attributes:
        queue: buffer, (D, K). queue_ptr: buffer, (1,), the column that is written next; the authors' names.
    """

    queue: Tensor
    queue_ptr: Tensor

    def __init__(self, dim: int, length: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("queue", F.normalize(torch.randn(dim, length, generator=generator), dim=0))
        self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.int64))

    @torch.no_grad()
    def enqueue_(self, keys: Tensor, layout: Ranks | None = None) -> None:
        """Write keys (B, D) of unit length; with `layout` those of all ranks, in the ranks' order.

        Deviation: K need not be a multiple of the batch; the queue wraps inside one.

        Raises:
            InputError: more keys than the queue holds.
        """
        keys = keys.detach() if layout is None else gather_rows(keys.detach(), layout)
        length = self.queue.shape[1]
        if len(keys) > length:
            raise InputError(f"a queue of {length} keys is shorter than the batch of {len(keys)}: lengthen it")
        columns = (self.queue_ptr + torch.arange(len(keys), device=self.queue.device)) % length
        self.queue.index_copy_(1, columns, keys.T.to(self.queue.dtype))
        self.queue_ptr.add_(len(keys)).remainder_(length)
