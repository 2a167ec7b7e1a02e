"""The momentum copy of a network: BYOL's target, MoCo's key encoder."""

from copy import deepcopy

import torch
from torch import Tensor, nn


def momentum_copy(source: nn.Module) -> nn.Module:
    """A copy that gets no gradient. Its batch norms keep statistics of their own, from its own passes."""
    return deepcopy(source).requires_grad_(False)


@torch.no_grad()
def update_momentum_(copy: nn.Module, source: nn.Module, momentum: float) -> None:
    """Move every parameter, frozen ones too: k <- m k + (1 - m) q. Buffers stay, as in BYOL's and MoCo's programs.

    Args:
        copy: k, of `momentum_copy`.
        source: q; its parameters have the same names (quantizing a net keeps them).
        momentum: m in [0, 1].

    Raises:
        KeyError: a parameter of the copy is missing in the source.
    """
    theirs = dict(source.named_parameters())
    k: list[Tensor] = []
    q: list[Tensor] = []
    for name, parameter in copy.named_parameters():
        k.append(parameter)
        q.append(theirs[name])
    torch._foreach_mul_(k, momentum)
    torch._foreach_add_(k, list(torch._foreach_mul(q, 1 - momentum)))
