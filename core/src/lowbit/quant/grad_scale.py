"""Element-wise gradient scaling from the Hessian of whatever loss is trained.

Lee, Kim, Ham, "Network Quantization with Element-wise Gradient Scaling", CVPR 2021 (arXiv 2104.00903), Sec. 3.3:
delta = max(0, (Tr(H) / N) / (3 std(g))) per quantizer, H the Hessian of the loss with respect to the N outputs q of the
rounding, in [0, 1], g its gradient; the mean over batches before the 0. Weights are |s| (2 q - 1), so that derivatives
with respect to q are 2 |s| times those with respect to them, and delta does not depend on s where batch norm follows.
The trace is Hutchinson's, the mean of v' H v over draws of v = +-1. Second derivatives of the rounding are 0, its
Jacobian that of training.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit.models.surgery import of_kind
from lowbit.quant.ewgs import Interval

SPREAD = 3.0  # standard deviations of the gradient
MOST_DRAWS, TOLERANCE = 50, 1e-3


def scale_by_hessian_(
    model: nn.Module, losses: Iterable[Callable[[], Tensor]], generator: torch.Generator, draws: int = MOST_DRAWS
) -> dict[str, float]:
    """Set delta of every scaled quantizer (`ewgs`, delta above 0 at the start), the mean over some batches.

    Args:
        model: in training mode, as in a step; modes and gradients are left alone, batch norm moves its statistics.
        losses: of each batch, what computes the loss that is trained: forward of `model` and objective.
        generator: draws v, on the CPU, so that all ranks with the same batches find the same.
        draws: the most of one batch; fewer where the mean changes by less than 0.1 %.

    Returns:
        {quantizer: delta}.
    """
    found = {name: interval for name, interval in of_kind(model, Interval).items() if interval.delta is not None}
    total, count = dict.fromkeys(found, 0.0), 0
    for loss in losses:
        for name, delta in _of_batch(found, loss, generator, draws).items():
            total[name] += delta
        count += 1
    means = {name: max(0.0, delta / max(count, 1)) for name, delta in total.items()}
    for name, interval in found.items() if count else ():
        assert interval.delta is not None
        interval.delta.fill_(means[name])
    return means


def _of_batch(
    intervals: dict[str, Interval], loss: Callable[[], Tensor], generator: torch.Generator, draws: int
) -> dict[str, float]:
    """Before the maximum with 0."""
    outputs: dict[str, Tensor] = {}
    spans: dict[str, float] = {}  # of the values: their derivative by q, which spans 1

    def keep(name: str, args: Any, output: Tensor) -> None:
        _, step, levels = args
        outputs.setdefault(name, output)
        spans[name] = float(step.detach()) * (levels.highest - levels.lowest)

    handles = [
        interval.register_forward_hook(lambda module, args, output, name=name: keep(name, args, output))
        for name, interval in intervals.items()
    ]
    try:
        value = loss()
    finally:
        for handle in handles:
            handle.remove()
    names, tensors = list(outputs), list(outputs.values())
    slopes = torch.autograd.grad(value, tensors, create_graph=True)
    deltas: dict[str, float] = {}
    for name, tensor, slope in zip(names, tensors, slopes, strict=True):
        mean, seen = 0.0, list[float]()
        for _ in range(draws):
            v = torch.randint(2, tensor.shape, generator=generator).to(tensor) * 2 - 1
            (product,) = torch.autograd.grad(slope, tensor, v, retain_graph=True, allow_unused=True)
            seen.append(0.0 if product is None else float((product * v).sum()))
            before, mean = mean, sum(seen) / len(seen)
            if len(seen) > 1 and abs(mean - before) < TOLERANCE * (abs(before) + 1e-6):
                break
        spread = SPREAD * float(slope.detach().std())
        deltas[name] = mean / tensor.numel() / spread * spans[name] if spread > 0 else 0.0
    return deltas
