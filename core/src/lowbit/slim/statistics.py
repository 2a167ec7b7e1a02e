"""Batch-norm statistics of a slimmable net: which width they are of, and re-estimated at each width, kept by width.

Yu, Huang, ICCV 2019, Sec. 3.3: statistics of a sub-network are a cumulative average over a few training batches.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import reestimated_batchnorm
from lowbit.models.surgery import of_kind
from lowbit.slim.layers import at_width, slimmable_layers
from lowbit.slim.norms import SlimBatchNorm2d
from lowbit.slim.widths import Width, channels_at
from lowbit.train.bn_statistics import batchnorms

TRIED = (20, 40, 1000)  # parts of 1 in which a width is looked for where a file does not say its own


def channels_of(net: nn.Module) -> tuple[tuple[int, ...], ...]:
    """How many channels run in each layer at the width at hand: two widths with the same are one sub-network."""
    counts = ("active_in", "active_out", "index")
    layers = slimmable_layers(net).values()
    return tuple(tuple(int(getattr(layer, name)) for name in counts if hasattr(layer, name)) for layer in layers)


class WidthStatistics:
    """Statistics re-estimated once for each sub-network, and kept.

    Args:
        net: slimmable, on the accelerator's device; its weights may not change.
        batches: under the training's transform; every process sees all of them (`lowbit.data.fixed.shuffled`), so that
            several find what one finds.
        accelerator: of the run.
    """

    def __init__(self, net: nn.Module, batches: Callable[[], Iterable[Batch]], accelerator: Accelerator) -> None:
        self.net, self.batches, self.accelerator = net, batches, accelerator
        self.kept: dict[tuple[tuple[int, ...], ...], list[Tensor]] = {}

    @contextmanager
    def at(self, width: Width) -> Iterator[None]:
        """The net at a width and with the statistics of that width inside the block; then as before.

        Raises:
            InputError: no width of this net.
            Stopped: a stop signal came (to any process).
        """
        buffers = [buffer for norm in batchnorms(self.net) for buffer in norm.buffers(recurse=False)]
        before = [buffer.clone() for buffer in buffers]
        with at_width(self.net, width):
            key = channels_of(self.net)
            if key not in self.kept:
                with reestimated_batchnorm(self.net, self.batches(), self.accelerator):
                    self.kept[key] = [buffer.clone() for buffer in buffers]
            try:
                _copy_(buffers, self.kept[key])
                yield
            finally:
                _copy_(buffers, before)


@torch.no_grad()
def _copy_(buffers: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def width_of_statistics(net: nn.Module) -> float | None:
    """The width that the statistics of universal batch norms are of, by the channels that have moved; None: none have.

    For files that do not say it: channels that did not run keep mean 0 and variance 1.

    Raises:
        InputError: these channels are those of no width.
    """
    norms = of_kind(net, SlimBatchNorm2d).values()
    moved = [_moved(norm) for norm in norms]
    if not any(moved):
        return None
    for width in (number / parts for parts in TRIED for number in range(parts, 0, -1)):
        found = (channels_at(norm.num_features, width, norm.ratios[0]) for norm in norms)
        if all(channels == count for channels, count in zip(found, moved, strict=True)):
            return width
    raise InputError(f"its batch-norm statistics are of no width: {moved} channels have some; calibrate it again")


def _moved(norm: SlimBatchNorm2d) -> int:
    """Channels up to the last whose statistics are not 0 and 1."""
    assert norm.running_mean is not None and norm.running_var is not None
    places = ((norm.running_mean != 0) | (norm.running_var != 1)).nonzero()
    return int(places[-1]) + 1 if len(places) else 0
