"""Whether a self-supervised net collapses: the spread of its outputs z.

Chen and He, "Exploring Simple Siamese Representation Learning", CVPR 2021 (arXiv 2011.10566), Sec. 4.1: the standard
deviation of each entry of z / |z| is near 1/sqrt(D) in health and 0 when all pictures are mapped to one point. It does
not see that only a few directions are used; the effective rank does (Roy and Vetterli, EUSIPCO 2007, Eq. 4; used on
unit vectors here, not centred, so that a collapsed net has rank 1).
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.evaluate.classify import Batches
from lowbit.evaluate.features import Encode, extract, outputs
from lowbit.train.epochs import after_every
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe

HEALTHY = 0.5  # of 1/sqrt(D): a demo below it has failed


class Spread(NamedTuple):
    """How far unit vectors of D entries spread.

    Attributes:
        z_std: standard deviation over the pictures, mean over the entries.
        z_std_relative: `z_std` times sqrt(D): near 1 in health, 0 after collapse.
        effective_rank: directions in use, from 1 to min(N, D).
    """

    z_std: float
    z_std_relative: float
    effective_rank: float

    @property
    def collapsed(self) -> bool:
        """Whether `z_std` is not above 0.5/sqrt(D); also where it is not a number."""
        return not self.z_std_relative > HEALTHY


def unit_std(z: Tensor) -> Tensor:
    """Mean over the entries of the unbiased standard deviation of z / |z| over the rows, (N, D) -> scalar, N > 1."""
    return F.normalize(z, dim=1).std(dim=0).mean()


def effective_rank(z: Tensor) -> Tensor:
    """Exponential of the entropy of the normalised singular values, (N, D) -> scalar; 0 for a zero matrix."""
    sigma = torch.linalg.svdvals(z)
    p = sigma / sigma.sum().clamp_min(torch.finfo(sigma.dtype).tiny)
    return torch.where(sigma.sum() > 0, torch.exp(torch.special.entr(p).sum()), 0.0)


@torch.no_grad()
def spread(z: Tensor) -> Spread:
    """Both figures of some outputs, (N, D), in double precision; NaN where z is not finite or has a single row."""
    if len(z) < 2 or not z.isfinite().all():
        return Spread(math.nan, math.nan, math.nan)
    unit = F.normalize(z.double(), dim=1)
    std = unit_std(unit).item()
    return Spread(std, std * math.sqrt(z.shape[1]), effective_rank(unit).item())


def collapse_probe(
    net_of: Callable[[Objective], nn.Module],
    batches: Batches,
    accelerator: Accelerator,
    *,
    every: int = 1,
    encode: Encode = outputs,
    context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> Probe:
    """The collapse monitor, for `Run.probes`: `z_std`, `z_std_relative`, `effective_rank`.

    Args:
        net_of: the encoder with its projector, out of the objective.
        batches: pictures under the evaluation recipe; no labels needed.
        accelerator: of the run.
        every: epochs between two probes; the last epoch always has one.
        encode: what of the net is asked for.
        context: given the net, a context manager around its forwards: a width with the statistics that belong to it.
    """
    due = after_every(every)

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if not due(clock):
            return {}
        net = net_of(objective)
        with context(net):
            return spread(extract(net, batches, accelerator, encode).x)._asdict()

    return probe
