"""Calibration: the ranges of activation quantizers from forwards of some pictures."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.models.surgery import of_kind, replace_
from lowbit.quant.activations import QuantActivation
from lowbit.quant.layers import quantizers
from lowbit.quant.observers import Observer


@runtime_checkable
class _Calibrated(Protocol):
    """What computes otherwise while ranges are watched: activation quantizers, and weights that are float then."""

    def begin_calibration_(self) -> None: ...

    def end_calibration_(self, keep: bool) -> None: ...


def uncalibrated(model: nn.Module) -> list[str]:
    """Names of the activation quantizers whose range is not set (reads tensors back)."""
    return [name for name, quantizer in quantizers(model).items() if not quantizer.calibrated()]


def has_ranges(model: nn.Module) -> bool:
    """Whether calibration has anything to do."""
    return any(quantizer.has_range() for quantizer in quantizers(model).values())


def unfixed(model: nn.Module) -> list[str]:
    """Names of the activation quantizers that have no range of their own: each batch's (`range="batch"`), or none yet.

    What they give for a picture depends on what else is in its batch.
    """
    return [*_by_batch(model), *uncalibrated(model)]


def fix_ranges_(model: nn.Module) -> nn.Module:
    """Ranges of each batch become running ones, which `calibrate_` has still to set; returns the model."""
    new: dict[str, nn.Module] = {}
    for name, old in _by_batch(model).items():
        new[name] = made = QuantActivation(replace(old.config, range="running"))
        made.train(old.training)
        if old.alpha is not None:
            made.alpha = old.alpha
    return replace_(model, new)


def _by_batch(model: nn.Module) -> dict[str, QuantActivation]:
    found = of_kind(model, QuantActivation)
    return {name: each for name, each in found.items() if each.config.bits and each.largest is None}


@torch.no_grad()
def calibrate_(model: nn.Module, batches: Iterable[Tensor]) -> int:
    """Set every range from forwards in evaluation mode; modes are restored, batch norm is not touched.

    Running ranges become the mean, over `batches`, of the batch's largest value; observed ones what the observer makes
    of them, with the whole net in float meanwhile.

    Args:
        model: with activation quantizers, of any kind.
        batches: pictures (B, C, H, W), B may be 0, on the model's device, the same number of batches on every rank:
            fixed ones, by seed, so that a result can be repeated.

    Returns:
        The number of this rank's batches with pictures; 0 where there is no range to set. An exception from `batches`
        (a stop) changes nothing.

    Raises:
        InputError: no picture on any rank although there are ranges to set.
    """
    if not has_ranges(model):
        return 0
    modes, count, keep = {module: module.training for module in model.modules()}, 0, False
    watching = [module for module in model.modules() if isinstance(module, _Calibrated)]
    model.eval()
    try:
        for quantizer in watching:
            quantizer.begin_calibration_()
        for x in batches:
            model(x)
            count += bool(len(x))
        if not _on_any_rank(count, model):
            raise InputError("calibration saw no picture: give at least one batch")
        keep = True
    finally:
        for quantizer in watching:
            quantizer.end_calibration_(keep)
        for module, training in modes.items():
            module.training = training
    sync_ranges_(model)
    return count


def reset_ranges_(model: nn.Module) -> nn.Module:
    """Forget the batches that ranges were taken from: the next one starts the range; returns the model."""
    for observer in of_kind(model, Observer).values():
        observer.reset_()
    return model


@torch.no_grad()
def sync_ranges_(model: nn.Module) -> nn.Module:
    """Widen every range to that of all ranks that have seen a batch; nothing on one process. Returns the model."""
    observers = of_kind(model, Observer).values()
    if not (_several_ranks() and observers):
        return model
    least = torch.tensor(-torch.inf, device=next(iter(observers)).low.device)
    ends = torch.stack([torch.where(o.seen > 0, -o.low, least) for o in observers]
                       + [torch.where(o.seen > 0, o.high, least) for o in observers])  # fmt: skip
    dist.all_reduce(ends, op=dist.ReduceOp.MAX)
    for observer, low, high in zip(observers, *ends.chunk(2), strict=True):
        somewhere = high > -torch.inf
        observer.low.copy_(torch.where(somewhere, -low, observer.low))
        observer.high.copy_(torch.where(somewhere, high, observer.high))
        observer.seen.clamp_(min=somewhere.to(observer.seen.dtype))
    return model


def _several_ranks() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _on_any_rank(count: int, model: nn.Module) -> bool:
    """Whether a rank has counted something (a collective), so that all of them refuse or none."""
    if not _several_ranks():
        return count > 0
    most = torch.tensor(count, device=next((t.device for t in (*model.parameters(), *model.buffers())), None))
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    return bool(most)
