"""Batch-norm statistics re-estimated for a while, at whatever bits or width a net is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.evaluate.features import AsEvaluated
from lowbit.train.bn_statistics import batchnorms, reestimate_batchnorm_
from lowbit.train.process import until_stopped


def check_pictures(net: nn.Module, count: int, described: str) -> None:
    """Refuse to re-estimate batch norm from one picture, which has no variance.

    Args:
        net: whose statistics are meant; any number will do for one without batch norm.
        count: of pictures.
        described: what they are, with the options that choose them, for the message.

    Raises:
        InputError: there is one picture, or none.
    """
    if count < 2 and batchnorms(net):
        raise InputError(f"batch norm is re-estimated from {described}: give 2 or more")


def reestimate_(net: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> None:
    """Set a net's statistics to those of `batches`, as evaluation runs it.

    Args:
        net: on the accelerator's device.
        batches: of two pictures or more, under the *training* recipe; every process sees all of them
            (`lowbit.data.fixed.shuffled`), so that several equal one.
        accelerator: of the run.

    Raises:
        Stopped: a stop signal came (to any process); the net is as it was.
    """
    moved = (batch.to(accelerator.device) for batch in until_stopped(batches, accelerator))
    reestimate_batchnorm_(AsEvaluated(net, accelerator), moved)


@contextmanager
def reestimated_batchnorm(net: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> Iterator[None]:
    """Inside the block statistics are those of `batches`, as by `reestimate_`; the old ones come back at the end."""
    old = [(buffer, buffer.clone()) for norm in batchnorms(net) for buffer in norm.buffers(recurse=False)]
    try:
        reestimate_(net, batches, accelerator)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in old:
                buffer.copy_(value)
