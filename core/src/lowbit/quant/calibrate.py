"""Calibration: the ranges of activation quantizers from forwards of some pictures."""

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.quant.layers import quantizers
from lowbit.quant.observers import sync_ranges_


@runtime_checkable
class _Calibrated(Protocol):
    """What computes otherwise while ranges are watched: activation quantizers, and weights that are float then."""

    def begin_calibration_(self) -> None: ...

    def end_calibration_(self, keep: bool) -> None: ...


def uncalibrated(model: nn.Module) -> list[str]:
    """Names of the activation quantizers whose range is not set (reads tensors back)."""
    return [name for name, quantizer in quantizers(model).items() if not quantizer.calibrated()]


@torch.no_grad()
def calibrate_(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set every range from forwards in evaluation mode; modes are restored, batch norm is not touched.

    Running ranges become the mean, over `batches`, of the batch's largest value; observed ones what the observer makes
    of them, with the whole net in float meanwhile.

    Args:
        model: with activation quantizers, of any kind.
        batches: pictures (B, C, H, W) on the model's device, the same number of batches on every rank: fixed ones, by
            seed, so that a result can be repeated.

    Returns:
        The number of batches seen; 0 where there is no range to set. An exception from `batches` (a stop) changes
        nothing.

    Raises:
        InputError: no batch although there are ranges to set.
    """
    if not any(quantizer.has_range() for quantizer in quantizers(model).values()):
        return 0
    modes, count, keep = {module: module.training for module in model.modules()}, 0, False
    watching = [module for module in model.modules() if isinstance(module, _Calibrated)]
    model.eval()
    try:
        for quantizer in watching:
            quantizer.begin_calibration_()
        for x in batches:
            model(x)
            count += 1
        if not count:
            raise InputError("calibration saw no picture: give at least one batch")
        keep = True
    finally:
        for quantizer in watching:
            quantizer.end_calibration_(keep)
        for module, training in modes.items():
            module.training = training
    sync_ranges_(model)
    return count
