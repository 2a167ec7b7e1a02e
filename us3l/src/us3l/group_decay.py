"""Group regularization: output channels that only wide nets have are decayed less.

Cao, Sun, Zhou, "Three Guidelines You Should Know for Universally Slimmable Self-Supervised Learning", CVPR 2023 (arXiv
2303.06870): R = sum over parameters and groups of lambda_i ||p_i||^2, where group i is the i-th block of floor(C / K)
output channels, the last one with the rest, and

    lambda_i = lambda (1 - alpha(t) i)  (linear)   or   lambda alpha(t)^i  (exp),    i = 0 .. K - 1.

alpha(t) is 0 up to the warm-up, then rises to alpha at half of the epochs. It replaces weight decay, of twice lambda.
Of vision transformers the inputs of linear layers are slimmed, so groups are blocks of a matrix's inputs.

Deviations from the authors' program: the gradient 2 lambda_i p is added before the optimizer steps, not a term to the
loss, which under DDP reaches heads that the pass did not use and stops it; vectors of the parameters' own type.
As theirs: every pass decays all channels, used or not; a pass at full width leaves the heads out; parameters without
such channels (matrices; of transformers all but these) have lambda.
"""

import logging
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from lowbit.train.protocol import Clock

log = logging.getLogger(__name__)
LEFT_OUT, HEADS = ("encoder_k.", "proj_conv."), ("predictor.", "predictor_new.")  # beginnings of names


@dataclass
class GroupDecay:
    """The regularization of one objective."""

    strength: float  # lambda, half of the weight decay that it stands for
    alpha: float = 0.2  # how much less a group has than the one before it
    kind: Literal["linear", "exp"] = "exp"
    bins: int = 4  # K, groups of a parameter
    warmup: int = 0  # epochs of equal groups
    of_inputs: bool = False  # groups are of a matrix's inputs
    _lambdas: tuple[float, ...] = field(default=(), init=False, repr=False)
    _factors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)  # by name, for these lambdas

    def __post_init__(self) -> None:
        if self.kind == "linear" and self.alpha * (self.bins - 1) > 1:
            log.warning(
                "group regularization: with alpha=%g the last of %d groups has a negative lambda: its channels grow",
                self.alpha, self.bins,
            )  # fmt: skip

    def lambdas(self, epoch: int, epochs: int) -> tuple[float, ...]:
        """Of each group, in an epoch (0-based) of a run of `epochs`."""
        if epoch < self.warmup:
            return (self.strength,) * self.bins
        rise = (epoch - self.warmup) / (epochs / 2 - self.warmup) if epoch < epochs / 2 else 1.0
        alpha = self.alpha * rise
        factors = ((1 - alpha * i if self.kind == "linear" else alpha**i) for i in range(self.bins))
        return tuple(self.strength * factor for factor in factors)

    @torch.no_grad()
    def add_(self, objective: nn.Module, width: float, clock: Clock) -> None:
        """Add 2 lambda p to the gradients of a pass at a width, of the same objective always; one without gets it."""
        lambdas = self.lambdas(clock.epoch, clock.epochs)
        if self._lambdas != lambdas:
            self._lambdas, self._factors = lambdas, {}
        factors = self._factors
        left_out = LEFT_OUT + (HEADS if width == 1.0 else ())
        triples = []
        for name, p in objective.named_parameters():
            if p.requires_grad and not name.startswith(left_out):
                if name not in factors or factors[name].device != p.device:
                    factors[name] = self._factor(p, lambdas)
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                triples.append((p.grad, p, factors[name]))
        torch._foreach_addcmul_(*map(list, zip(*triples, strict=True)))

    def _factor(self, p: Tensor, lambdas: tuple[float, ...]) -> Tensor:
        """2 lambda of each channel, in a shape that multiplies p."""
        dim = 1 if self.of_inputs else 0
        if p.dim() not in ((2,) if self.of_inputs else (1, 4)):
            return torch.tensor(2 * self.strength, dtype=p.dtype, device=p.device)
        size, last = p.shape[dim] // self.bins, self.bins - 1  # fewer channels than groups: all are in the last one
        values = [2 * lambdas[min(channel // size, last) if size else last] for channel in range(p.shape[dim])]
        return torch.tensor(values, dtype=p.dtype, device=p.device).view(-1, *[1] * (p.dim() - 1 - dim))
