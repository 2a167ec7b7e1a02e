"""The sub-networks of a slimmable net: rounding leaves few that differ, 90 of a ResNet-18 in [0.25, 1].

Numbers of channels change at known widths alone. So all sub-networks are found, and each has its cost by the shapes of
its layers, without a forward.
"""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.slim.layers import at_width, slimmable_layers
from lowbit.slim.norms import SwitchableBatchNorm2d
from lowbit.slim.widths import channels_at, check_width

DIGITS = 12  # of a width at most
GUARDED = 5  # multiples of 8 for which rounding down stops at 0.9 of the value

Side = tuple[int, int]  # channels of one side of a layer, and their ratio


@dataclass(frozen=True)
class Subnetwork:
    """One sub-network.

    Attributes:
        width: one that gives it, with as few digits as may be.
        macs: multiply-accumulates for one picture, as `lowbit.cost` counts them.
        parameters: weights and biases.
    """

    width: float
    macs: int
    parameters: int


def subnetworks(
    net: nn.Module, input_size: tuple[int, int, int], lowest: float = 0.25, highest: float = 1.0
) -> list[Subnetwork]:
    """All sub-networks of one width that differ, the narrowest first.

    Args:
        net: of `lowbit.slim.conversion.slim_`; of one that has a batch norm for each width of a list, those widths.
        input_size: (C, H, W) of a picture.
        lowest: smallest width.
        highest: largest.

    Raises:
        InputError: a range that holds no width, or pictures that the net does not take.
    """
    if check_width(lowest) > check_width(highest):
        raise InputError(f"no width lies between {lowest} and {highest}: give the smaller one first")
    layers: dict[str, Any] = dict(slimmable_layers(net))
    listed = sorted({w for m in layers.values() if isinstance(m, SwitchableBatchNorm2d) for w in m.widths})
    full = listed[-1] if listed else 1.0
    with at_width(net, full):
        rows = cost(net, input_size).layers
    fixed = [row for row in rows if row.name not in layers]
    slim = []
    for row in rows:
        if row.name in layers and row.parameters:  # one that layers share counts once
            layer = layers[row.name]
            slim.append((layer, row.macs // max(1, _sizes(layer, full)[0])))

    def costed(width: float) -> Subnetwork:
        macs, parameters = sum(row.macs for row in fixed), sum(row.parameters for row in fixed)
        for layer, positions in slim:
            weights, others = _sizes(layer, width)
            macs, parameters = macs + positions * weights, parameters + weights + others
        return Subnetwork(width, macs, parameters)

    sides = {side for layer in layers.values() for side in zip(layer.full, layer.ratios, strict=True) if side[1]}
    widths = [w for w in listed if lowest <= w <= highest] if listed else _distinct(sides, lowest, highest)
    return [costed(width) for width in widths]


def best_under(macs: int, found: Collection[Subnetwork]) -> Subnetwork:
    """The largest sub-network of at most this many multiply-accumulates.

    Raises:
        InputError: there is none.
    """
    small = [one for one in found if one.macs <= macs]
    if not small:
        least = min((one.macs for one in found), default=0)
        raise InputError(f"no sub-network has {macs:,} multiply-accumulates or fewer; the smallest has {least:,}")
    return max(small, key=lambda one: one.macs)


def _sizes(layer: Any, width: float) -> tuple[int, int]:
    """Numbers of a layer at a width: in its weight, in what else it has (bias; both of a batch norm)."""
    inputs, outputs = layer.channels(width, width)
    if not isinstance(layer, nn.Conv2d | nn.Linear):
        return 0, 2 * inputs
    shape: Any = layer.weight.shape
    inputs = shape[1] if getattr(layer, "groups", 1) > 1 else inputs
    return outputs * inputs * shape[2:].numel(), 0 if layer.bias is None else outputs


def _distinct(sides: Collection[Side], lowest: float, highest: float) -> list[float]:
    """A width for each combination of numbers of channels."""
    edges = {lowest, highest}
    for channels, ratio in sides:
        values = [8 * k + 4.0 for k in range(channels // 8 + 1)] + [8 * k / 0.9 for k in range(GUARDED)] + [1 / 0.9]
        edges |= {w for value in values if lowest < (w := value * ratio / channels) < highest}
    cuts = sorted(edges)
    inside = [_short(low, high) for low, high in pairwise(cuts)]
    found: dict[tuple[int, ...], float] = {}
    for width in sorted({lowest, highest, *inside}):
        found.setdefault(tuple(channels_at(channels, width, ratio) for channels, ratio in sides), width)
    found[tuple(channels_at(channels, highest, ratio) for channels, ratio in sides)] = highest
    return sorted(found.values())


def _short(low: float, high: float) -> float:
    """The number near the middle of an interval, inside it, that has the fewest digits."""
    middle = (low + high) / 2
    return next((x for digits in range(2, DIGITS) if low < (x := round(middle, digits)) < high), middle)
