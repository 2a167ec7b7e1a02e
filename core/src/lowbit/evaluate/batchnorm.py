"""Batch norm's statistics estimated anew for a while, at whatever bits or width a net is."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.data.batch import Batch
from lowbit.evaluate.features import AsEvaluated, until_stopped
from lowbit.train.bn import reestimate_batchnorm_


def norms(net: nn.Module) -> list[_BatchNorm]:
    """The batch norms of a net that have statistics."""
    return [module for module in net.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None]


@contextmanager
def batchnorm_anew(net: nn.Module, batches: Iterable[Batch], accelerator: Accelerator) -> Iterator[None]:
    """Inside the block statistics are those of `batches`; the old ones come back at the end.

    Args:
        net: on the accelerator's device.
        batches: of two pictures or more, under the *training* recipe; every process sees all of them, so that several
            equal one.
        accelerator: of the run.

    Raises:
        Stopped: a stop signal came (to any process).
    """
    old = [(buffer, buffer.clone()) for norm in norms(net) for buffer in norm.buffers(recurse=False)]
    try:
        moved = (batch.to(accelerator.device) for batch in until_stopped(batches, accelerator))
        reestimate_batchnorm_(AsEvaluated(net, accelerator), moved)
        yield
    finally:
        with torch.no_grad():
            for buffer, value in old:
                buffer.copy_(value)
