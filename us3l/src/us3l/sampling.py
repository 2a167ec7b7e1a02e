"""Which widths a step trains: the sandwich rule and the dynamic sampling of US3L.

Sandwich rule: Yu and Huang, "Universally Slimmable Networks and Improved Training Techniques", ICCV 2019 (arXiv
1903.05134), Sec. 3.2. Schedule A (dynamic sampling): Cao, Sun, Zhou, "Three Guidelines You Should Know for Universally
Slimmable Self-Supervised Learning", CVPR 2023 (arXiv 2303.06870).

Deviations from the authors' program: stage = min(4, floor(4 epoch / epochs) + 1) for any number of epochs (theirs
divides by epochs // 4 and reaches width 0 in a fifth stage); the sandwich of n widths has n of them (theirs, for 4 and
5, repeats the ends: 6 and 9, and has none for 2); draws come in as an argument, the same on all ranks.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lowbit.errors import InputError

Uniform = Callable[[float, float], float]  # (low, high) -> a number between them
STAGES = 4


@dataclass(frozen=True)
class Sampling:
    """How the widths of a step are chosen."""

    low: float = 0.25  # ends of the range, 0 < low <= high <= 1
    high: float = 1.0
    n: int = 3  # widths of a step, 2 or more
    sandwich: bool = True  # the two ends are always among them; else all are drawn
    schedule: Literal["", "A"] = ""  # A: in four stages the range opens from `high` alone, a third of it at a time
    fixed: tuple[float, ...] = ()  # these widths in every step (one, or a switchable net's); nothing is drawn

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high <= 1:
            raise InputError(f"widths from {self.low} to {self.high}: should be 0 < low <= high <= 1")
        if not all(0 < width <= 1 for width in self.fixed):
            raise InputError(f"widths {list(self.fixed)}: each should be above 0 and at most 1")
        if not self.fixed and self.n < 2:
            raise InputError(f"{self.n} widths a step: draw 2 or more, or name one fixed width")

    def trained(self, epochs: int) -> tuple[float, ...]:
        """What `epochs` epochs train: the fixed widths, or both ends of the range, as far as it opens in them.

        Of no epochs (a config that trains nothing) it is the whole range.
        """
        return self.fixed or (self.low_at(epochs - 1, epochs) if epochs else self.low, self.high)

    def low_at(self, epoch: int, epochs: int) -> float:
        """The smallest width of an epoch (0-based) of a run of `epochs`."""
        if self.schedule == "":
            return self.low
        stage = min(STAGES, STAGES * epoch // epochs + 1)
        return self.low + (STAGES - stage) / (STAGES - 1) * (self.high - self.low)

    def widths(self, epoch: int, epochs: int, uniform: Uniform) -> tuple[float, ...]:
        """The widths of one step, the largest first; `high` alone where the range has not opened yet."""
        if self.fixed:
            return tuple(sorted(self.fixed, reverse=True))
        low = self.low_at(epoch, epochs)
        if low == self.high:
            return (self.high,)
        ends = [self.high, low] if self.sandwich else []
        drawn = [uniform(low, self.high) for _ in range(self.n - len(ends))]
        return tuple(sorted(ends + drawn, reverse=True))

    def names(self, widths: tuple[float, ...]) -> tuple[str, ...]:
        """What a record calls them: a fixed width by its number ("" where it is alone), others max, middle, min."""
        if self.fixed:
            return tuple(f"{width:g}" for width in widths) if len(widths) > 1 else ("",)
        return ("max", *["middle"] * (len(widths) - 2), "min")[: len(widths)]
