"""A learned clipping value for inputs.

Choi et al., "PACT: Parameterized Clipping Activation for Quantized Neural Networks", arXiv 1805.06085, Eq. 1-3: inputs
without negative values are clipped to [0, alpha], with 2^b levels; weights are DoReFa's. Inputs with negative values
are clipped to [-alpha, alpha], the same number of steps apart, with 0 among the 2^b levels.

Gradients: x gets g where 0 < x < alpha; from alpha on, alpha alone does: the sum of g there (less that at and below
-alpha). alpha starts where quantizing the first data errs least (the paper asks for a large one).

The released variant: `lowbit.quant.learned.LearnedConfig`.
"""

import torch
from torch import Tensor, nn

from lowbit.quant.layers import Grid
from lowbit.quant.learned import LearnedConfig, LearnedRange, positive, sign_of, unset
from lowbit.quant.observers import least_error
from lowbit.quant.rounding import Levels, quantize_evenly

FROZEN = 6.0  # of the released variant


class PactInput(LearnedRange, nn.Module):
    """Inputs of any shape; `signed` is a buffer, so that files hold it."""

    alpha: Tensor
    signed: Tensor

    def __init__(self, config: LearnedConfig) -> None:
        super().__init__()
        self.config = config
        if config.released:
            self.register_buffer("alpha", torch.tensor(FROZEN))
        else:
            self.alpha = unset()
        self.register_buffer("signed", torch.ones(()))

    @torch.no_grad()
    def initialize_(self, x: Tensor) -> None:
        """See the module's text."""
        self.signed.copy_(sign_of(x, self.config))
        if not self.config.released:
            bits = torch.tensor(self.config.bits, device=x.device)
            low, high = least_error(x.reshape(1, -1), bits)
            self.alpha.copy_(positive(torch.maximum(-low, high))[0])

    def forward(self, x: Tensor) -> Tensor:
        """Any shape."""
        step, levels = self._grid()
        return quantize_evenly(x, step, levels)

    @torch.no_grad()
    def grid(self) -> Grid:
        """Of the quantized input; reads the sign back."""
        step, _ = self._grid()
        return Grid(step, torch.zeros_like(step), self.config.bits, signed=bool(self.signed))

    def _grid(self) -> tuple[Tensor, Levels]:
        top = 2.0**self.config.bits - 1
        end, zero = top * (1 - self.signed / 2), torch.zeros_like(self.signed)  # alpha in steps
        if self.config.released:
            lowest = zero - 2.0 ** (self.config.bits - 1)
            return self.alpha / end, Levels(lowest, lowest + top, 0.0, "code")
        # alpha itself lies half a step beyond the last signed code, and must not round to the next
        highest = torch.where(self.signed > 0, torch.nextafter(end, zero), end)
        return positive(self.alpha) / end, Levels(-self.signed * end, highest, 0.0, "open", clip_step=True)
