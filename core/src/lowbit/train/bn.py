"""Batch norm over all processes.

torch's SyncBatchNorm refuses the CPU and drops the activation that timm's fused classes carry. Here the mean and the
centred squares are each summed over all ranks by a function whose backward is the same sum, so that first and second
derivatives are those of one process holding the whole batch, also where ranks hold different numbers of pictures.
"""

from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowbit.errors import InputError


class _SumOverRanks(torch.autograd.Function):
    """y = sum of x over ranks; since every rank's loss depends on y, dx = sum of dy over ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return sum_over_ranks(grads[0])


def processes() -> int:
    """Processes of the run, 1 outside one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum of a tensor over all ranks, differentiable any number of times."""
    y: Tensor = _SumOverRanks.apply(x)
    return y


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose batch is that of all ranks, (B, C, ...) -> the same; then `drop` and `act`.

    On one process and in eval mode it is torch's own batch norm. Statistics are float32 at least.

    Attributes:
        drop, act: what timm's `BatchNormAct2d` carries; identities elsewhere.
    """

    def __init__(self, like: _BatchNorm) -> None:
        """Take over parameters, buffers and settings of `like`."""
        super().__init__(like.num_features, like.eps, like.momentum, like.affine, like.track_running_stats)
        for name, parameter in like.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name, buffer in like.named_buffers(recurse=False):
            self.register_buffer(name, buffer)
        self.drop = getattr(like, "drop", nn.Identity())
        self.act = getattr(like, "act", nn.Identity())
        self.train(like.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"batch norm takes (B, C, ...), not {tuple(input.shape)}")

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, then `drop`, then `act`."""
        own = self.training or self.running_mean is None
        normalised = self._over_ranks(x) if own and processes() > 1 else super().forward(x)
        return self.act(self.drop(normalised))

    def _over_ranks(self, x: Tensor) -> Tensor:
        self._check_input_dim(x)
        running = None
        if self.training and self.track_running_stats and self.running_mean is not None:
            assert self.running_var is not None
            running = self.running_mean, self.running_var
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked or 1)
        return batch_norm_over_ranks(x, self.weight, self.bias, running, rate, self.eps)


def batch_norm_over_ranks(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, running: tuple[Tensor, Tensor] | None,
    rate: float, eps: float,
) -> Tensor:  # fmt: skip
    """Batch norm in training mode whose batch is that of all ranks.

    Args:
        x: (B, C, ...); B may differ between ranks.
        weight: (C,).
        bias: (C,).
        running: mean and variance, (C,) each, moved in place by `rate`; None: there are none.
        rate: torch's `momentum`.
        eps: added to the variance.
    """
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    dims = [d for d in range(x.dim()) if d != 1]
    shape = [1, -1] + [1] * (x.dim() - 2)
    here = wide.new_tensor([x.numel() // x.shape[1]])
    sums = sum_over_ranks(torch.cat([wide.sum(dims), here]))
    count = sums[-1].detach()
    mean = sums[:-1] / count
    centred = wide - mean.view(shape)
    variance = sum_over_ranks(centred.square().sum(dims)) / count
    if running is not None:
        unbiased = variance.detach() * (count / (count - 1))
        for buffer, value in zip(running, (mean.detach(), unbiased), strict=True):
            buffer.lerp_(value.to(buffer.dtype), rate)
    y = centred * torch.rsqrt(variance + eps).view(shape)
    if weight is not None and bias is not None:
        y = y * weight.view(shape) + bias.view(shape)
    return y.to(x.dtype)


@runtime_checkable
class Synchronisable(Protocol):
    """A batch norm with a forward of its own that can normalise by the batch of all ranks."""

    def synchronise_(self) -> None:
        """Do so from now on."""
        ...


# Batch norms whose training is torch's: statistics and normalisation of the whole input, `momentum` None a mean over
# batches. A subclass with a forward of its own (of a part of the channels, of parts of the batch) may do neither.
TORCHS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, BatchNormAct2d.forward, SyncBatchNormAct.forward)


def sync_batchnorm_(model: nn.Module) -> nn.Module:
    """Replace every batch norm inside `model` in place; keys of the state dict and parameters stay. Returns it.

    timm's `BatchNormAct2d` keeps its activation and dropout. A subclass of `SyncBatchNorm` stays as it is; so
    does one that is `Synchronisable`.

    Raises:
        InputError: a batch norm that computes in a way of its own.
    """
    if isinstance(model, _BatchNorm) and not isinstance(model, SyncBatchNorm):
        if isinstance(model, Synchronisable):
            model.synchronise_()
            return model
        if type(model).forward not in TORCHS:
            raise InputError(
                f"{type(model).__name__} computes batch norm in a way of its own, which cannot be done over all "
                "processes (--sync-bn): train on one process or take another net"
            )
        return SyncBatchNorm(model)
    for name, child in model.named_children():
        setattr(model, name, sync_batchnorm_(child))
    return model
