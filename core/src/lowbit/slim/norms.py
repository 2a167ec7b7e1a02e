"""Batch norm of slimmable nets: one for all widths (universal), or a private one for each width of a list (switchable).

Yu, Huang, ICCV 2019, Sec. 3 (universally slimmable: statistics are re-estimated at each width after training); Yu et
al., "Slimmable Neural Networks", ICLR 2019, Sec. 3.1 (switchable).

Deviations: torch's `track_running_stats = False` says that training leaves the statistics as they are; the buffers stay
(universal nets of others have none then, and cannot be evaluated). Switchable norms round numbers of channels as all
layers do; those of the paper's program cut them off, which differs in MobileNet-V2's narrow layers alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.slim.layers import Slim
from lowbit.slim.widths import channels_at, show_width
from lowbit.train.bn import TORCHS, batch_norm_over_ranks, processes


def check_ordinary(norm: nn.BatchNorm2d) -> None:
    """Refuse a batch norm that is not torch's, or timm's with an activation.

    Raises:
        InputError: it computes in a way of its own, or has no weight and bias or no statistics.
    """
    if type(norm).forward not in TORCHS:
        raise InputError(f"{type(norm).__name__} computes batch norm in a way of its own, which cannot be slimmed")
    if norm.weight is None or norm.running_mean is None:
        raise InputError(f"this {type(norm).__name__} has no weight or no running statistics, so it cannot be slimmed")


@torch.no_grad()
def leading_norm(norm: Any, channels: int) -> nn.BatchNorm2d:
    """The ordinary batch norm of the leading channels, a copy, with `act` and `drop` where it is timm's."""
    after = [getattr(norm, name, None) for name in ("drop", "act")]
    fused = any(not isinstance(module, nn.Identity | None) for module in after)
    kind = BatchNormAct2d if fused else nn.BatchNorm2d
    plain = kind(channels, norm.eps, norm.momentum, device="meta")
    for name, own in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
        new = own[:channels].clone() if own.dim() else own.clone()
        setattr(plain, name, nn.Parameter(new, own.requires_grad) if isinstance(own, nn.Parameter) else new)
    if fused:
        plain.drop, plain.act = after
    return plain.train(norm.training)


class SlimBatchNorm2d(Slim, nn.BatchNorm2d):
    """Batch norm of the leading channels, (B, active, H, W) -> the same; then `drop` and `act`.

    The batch counter never advances: statistics belong to the width at which they were estimated last.

    Args:
        norm: torch's or timm's, whose tensors are taken over.
        ratio: of the number of channels (`lowbit.slim.widths.channels_at`).

    Attributes:
        drop, act: of timm's `BatchNormAct2d`; else None.

    Raises:
        InputError: see `check_ordinary`.
    """

    def __init__(self, norm: nn.BatchNorm2d, ratio: int = 1) -> None:
        check_ordinary(norm)
        super().__init__(norm.num_features, norm.eps, norm.momentum, device="meta")
        for name, own in (*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)):
            setattr(self, name, own)
        self.track_running_stats, self.over_ranks = norm.track_running_stats, False
        self.drop: Any
        self.act: Any
        self.drop, self.act = getattr(norm, "drop", None), getattr(norm, "act", None)
        self.full, self.ratios = (self.num_features,) * 2, (ratio,) * 2
        self.set_width_(1.0, 1.0)

    def synchronise_(self) -> None:
        """Normalise by the batch of all ranks from now on (`lowbit.train.bn`)."""
        self.over_ranks = True

    def forward(self, x: Tensor) -> Tensor:
        """Normalise by the batch in training mode, by the statistics in evaluation."""
        tensors: Any = self.weight, self.bias, self.running_mean, self.running_var
        full = self.active_in == self.num_features
        weight, bias, mean, var = tensors if full else (tensor[: self.active_in] for tensor in tensors)
        rate = 0.0 if self.momentum is None else self.momentum
        used = self.track_running_stats or not self.training
        if self.training and self.over_ranks and processes() > 1:
            y = batch_norm_over_ranks(x, weight, bias, (mean, var) if used else None, rate, self.eps)
        else:
            mean, var = (mean, var) if used else (None, None)
            y = F.batch_norm(x, mean, var, weight, bias, self.training, rate, self.eps)
        return y if self.act is None else self.act(self.drop(y))

    def to_plain(self) -> nn.BatchNorm2d:
        """The ordinary batch norm of the channels that run."""
        return leading_norm(self, self.active_in)


class SwitchableBatchNorm2d(Slim, nn.Module):
    """A private batch norm for each width of a list, (B, active, H, W) -> the same.

    Args:
        norm: torch's or timm's, of which each begins as a copy of the leading channels.
        widths: the list.
        ratio: of the number of channels (`lowbit.slim.widths.channels_at`).

    Attributes:
        bn: of each width; index: of the one that runs.

    Raises:
        InputError: see `check_ordinary`.
    """

    def __init__(self, norm: nn.BatchNorm2d, widths: Sequence[float], ratio: int = 1) -> None:
        check_ordinary(norm)
        super().__init__()
        self.widths, self.full, self.ratios = tuple(widths), (norm.num_features,) * 2, (ratio,) * 2
        self.bn = nn.ModuleList(leading_norm(norm, channels_at(norm.num_features, w, ratio)) for w in self.widths)
        self.set_width_(self.widths[0], self.widths[0])

    def set_width_(self, of_input: float, of_output: float) -> None:
        """Run the batch norm of a width from now on.

        Raises:
            InputError: the width is not in the list.
        """
        near = min(range(len(self.widths)), key=lambda i: abs(self.widths[i] - of_input))
        if abs(self.widths[near] - of_input) > 1e-6:
            known = ", ".join(map(show_width, self.widths))
            raise InputError(f"width {of_input:g} has no batch norm of its own: take one of {known}")
        self.index = near
        super().set_width_(of_input, of_output)

    def forward(self, x: Tensor) -> Tensor:
        """The batch norm of the width at hand."""
        y: Tensor = self.bn[self.index](x)
        return y

    def to_plain(self) -> nn.BatchNorm2d:
        """The batch norm of the width at hand, a copy."""
        norm: Any = self.bn[self.index]
        return leading_norm(norm, norm.num_features)
