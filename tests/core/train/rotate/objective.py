"""Gidaris, Singh, Komodakis, "Unsupervised Representation Learning by Predicting Image Rotations", ICLR 2018."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from lowbit.data.batch import Batch
from lowbit.options import SgdOptions
from lowbit.quant.layers import Codes, Grid
from lowbit.train.optim import stated_optimizer
from lowbit.train.protocol import Clock, Objective, Out, Pass


class TwoBits(nn.Module):
    """Weights (out, in, kH, kW) of -3/2, -1/2, 1/2 or 3/2 times the mean |w| of their channel; straight-through."""

    @torch.no_grad()
    def codes(self, weight: Tensor) -> Codes:
        """0 to 3."""
        scale = weight.abs().mean((1, 2, 3), keepdim=True)
        codes = (weight / scale + 1.5).round().clamp(0, 3).int()
        return Codes(codes, Grid(scale, zero_point=scale.new_tensor(1.5), bits=2, signed=False))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight to compute with."""
        return self.codes(weight).values() + (weight - weight.detach())


class Rotation(Objective):
    """Cross-entropy of the turn that a picture was given; each picture is shown in all four."""

    compiled = {"student": False}  # noqa: RUF012 (read-only)

    def __init__(self, student: nn.Module, sgd: SgdOptions) -> None:
        super().__init__()
        self.student, self.sgd = student, sgd

    def optimizers(self) -> dict[str, Optimizer]:
        """One, named "main"."""
        return {"main": stated_optimizer(self.student.parameters(), self.sgd)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """The loss of one batch."""
        x = batch.views[0]
        turned = torch.cat([x.rot90(turns, (2, 3)) for turns in range(4)])
        return Out(F.cross_entropy(self.student(turned), torch.arange(4, device=x.device).repeat_interleave(len(x))))
