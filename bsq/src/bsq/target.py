"""`--target-compression`: the group lasso's strength follows the size of the net, and the last planes are counted out.

At 100 to 199 moments of a run (at every step of a shorter one) the compression that a re-quantisation would give now is
held against a path that rises geometrically from the start's to the target over the first 60 % of the run; the strength
is

    alpha = decay * exp(GAIN * lag),   lag = wanted - reached, as shares of the whole path in logarithms,

a function of the planes as they are, without memory: larger than `decay` where the net lags behind, smaller where it is
ahead. After the last re-quantisation, `meet_` moves single tensors by one bit until no move comes nearer.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from bsq import planes
from bsq.bit_layer import BitLayer, Keys
from bsq.planes import Planes
from lowbit.errors import InputError

MOMENTS = 100  # of a run at which the strength is set
ARRIVES = 0.6  # share of a run after which the target should be reached; the rest is for the rate's decay
GAIN = 12.0  # on the digits 8 arrives 20 % short of a target of 10, and an integral control overshoots without end
MOST = 6.0  # of GAIN * lag: a short run lags far behind at once, and more would kill whole layers in a step


class Slot(NamedTuple):
    """One weight or bias of a net: the layer's name, the layer, which tensor."""

    name: str
    layer: BitLayer
    keys: Keys

    @property
    def numel(self) -> int:
        """Elements."""
        return self.layer.numel(self.keys)


def slots(layers: Mapping[str, BitLayer]) -> list[Slot]:
    """Every tensor of a net in bit form."""
    return [Slot(name, layer, keys) for name, layer in layers.items() for keys in layer.tensors]


class Aim(NamedTuple):
    """Where the strength is to lead.

    Attributes:
        decay: the strength on the path.
        start: compression at the path's beginning.
        target: at its end.
    """

    decay: float
    start: float
    target: float

    def check(self, layers: Mapping[str, BitLayer], floor: Callable[[str], int]) -> None:
        """Whether the target can be reached.

        Raises:
            InputError: no strength to adapt, a target below the start's compression or beyond the floors'.
        """
        if self.decay == 0:
            raise InputError("--target-compression adapts --decay, which is 0: give a strength to begin with")
        found = slots(layers)
        most = 32 * sum(s.numel for s in found) / sum(s.numel * floor(s.name) for s in found)
        if not self.start < self.target <= most:
            raise InputError(
                f"--target-compression {self.target:g}: this net starts at {self.start:.2f} and has {most:.2f} with "
                "every layer at its floor (--min-bits); give a value between"
            )

    def strength(self, now: float, progress: float) -> float:
        """The lasso's strength at a share of the run, where a re-quantisation would give the compression `now`."""
        reached = math.log(now / self.start) / math.log(self.target / self.start)
        lag = min(progress / ARRIVES, 1.0) - reached
        return self.decay * math.exp(max(min(GAIN * lag, MOST), -GAIN))


def _ends(p: Tensor, n: Tensor, ceiling: int) -> Tensor:
    """(largest code, lowest set bit of any code), (2,), int64; the first is 0 where all codes are."""
    code = planes.weighted_sum(p.detach(), n.detach()).round_().abs_().to(torch.int64)
    if p.shape[-1] >= ceiling:
        code = code.clamp_(max=planes.top(p.shape[-1]))
    lowest = torch.where(code > 0, code & -code, 1 << 32).amin()
    return torch.stack((code.amax(), lowest))


@torch.no_grad()
def compression_now(
    layers: Mapping[str, BitLayer], ceiling: Callable[[str], int], floor: Callable[[str], int]
) -> float:
    """The compression if the net were re-quantised and its empty planes dropped now; one value is read back.

    A threshold (`--thre`) is not looked at.
    """
    found = slots(layers)
    ends = torch.stack([_ends(*s.layer.planes(s.keys)[:2], ceiling(s.name)) for s in found]).tolist()
    used = [int(high).bit_length() - int(low).bit_length() + 1 if high else 0 for high, low in ends]
    widths = [max(bits, floor(s.name)) if bits else 0 for s, bits in zip(found, used, strict=True)]
    bits = sum(s.numel * width for s, width in zip(found, widths, strict=True))
    return 32 * sum(s.numel for s in found) / max(bits, 1)


def shortened(given: Planes, floor: int = 1) -> Planes:
    """At least one bit fewer: codes are halved and rounded (half to even), the step doubles, empty planes go."""
    p, n, scale = given
    bits = given.bits - 1
    code = (planes.weighted_sum(p, n) / 2).round_().clamp_(-planes.top(bits), planes.top(bits))
    halved = Planes(*planes.to_planes(code, bits, p), scale * (2 * planes.top(bits) / planes.top(given.bits)))
    return planes.prune(halved, at_least=floor)


def widened(given: Planes) -> Planes:
    """One bit more: the same weights converted again at the finer step."""
    return planes.from_float(planes.reconstruct(*given), given.bits + 1)


class Move(NamedTuple):
    """A change of one tensor: `bits` is negative where it shortens, `loss` is ||change||^2 / ||w||^2 per weight bit."""

    slot: Slot
    planes: Planes
    bits: int
    loss: float


def _moves(slot: Slot, floor: int, ceiling: int) -> Iterator[Move]:
    """What may be done to a tensor. Dead tensors stay dead."""
    given, bits = slot.layer.planes(slot.keys), slot.layer.bits(slot.keys)
    if bits < 2:  # a loss is measured by halving, and one bit is the least there is
        loss = math.inf
    else:
        new = shortened(given, floor)
        before, after = (planes.reconstruct(*x).double() for x in (given, new))
        loss = ((after - before).square().sum() / before.square().sum()).item() / (slot.numel * (bits - new.bits))
        if floor <= new.bits and bool(after.any()):
            yield Move(slot, new, (new.bits - bits) * slot.numel, loss)
    if 0 < bits < ceiling:
        yield Move(slot, widened(given), slot.numel, loss)


def _replaced(_: Planes, new: Planes) -> Planes:
    return new


@torch.no_grad()
def meet_(
    layers: Mapping[str, BitLayer], target: float, floor: Callable[[str], int], ceiling: Callable[[str], int]
) -> int:
    """Shorten or widen tensors until nothing brings the bits nearer to the target's. Returns the number of moves.

    The tensor that loses least is shortened; where the net is too small already, the one that would lose most is
    widened: the same weights on a finer grid, which fine-tuning can use.

    Args:
        layers: re-quantised, without empty planes but those that a floor keeps.
        target: the compression.
        floor: the fewest bits of a layer, by name.
        ceiling: the most.
    """
    found = slots(layers)
    wanted = 32 * sum(s.numel for s in found) / target
    bits = sum(s.numel * s.layer.bits(s.keys) for s in found)
    possible = {s: list(_moves(s, floor(s.name), ceiling(s.name))) for s in found}
    moves = 0
    while better := [m for s in found for m in possible[s] if abs(bits + m.bits - wanted) < abs(bits - wanted)]:
        move = min(better, key=lambda m: m.loss if bits > wanted else -m.loss)
        slot, new, change, _ = move
        slot.layer.change_planes_(partial(_replaced, new=new), slot.keys)
        bits += change
        possible[slot] = list(_moves(slot, floor(slot.name), ceiling(slot.name)))
        moves += 1
    return moves
