"""Draws as a pure function of (seed, stream, epoch, picture, view, operation): a vectorised counter hash.

The mixing function is SplitMix64's finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014). Everything is computed on the CPU, so that the draws do not depend on the device, the batch split, the
number of workers or the version of a library's generator; no global random state is read or written.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: Words) -> Words:
    """SplitMix64's finaliser, elementwise: a bijection of 64-bit words whose every output bit depends on all bits."""
    x = x ^ (x >> np.uint64(30))
    x = x * np.uint64(0xBF58476D1CE4E5B9)
    x = x ^ (x >> np.uint64(27))
    x = x * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _key(*place: int | str) -> Words:
    """One word, (1,), that stands for a tuple of numbers and names."""
    plain = tuple(part if isinstance(part, str) else int(part) for part in place)  # numpy's integers print differently
    digest = hashlib.blake2b(repr(plain).encode(), digest_size=8).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def words(index: NDArray[np.int64], *place: int | str) -> Words:
    """One 64-bit word per entry of `index`, (N,), a function of the entry and of `place` alone."""
    return _mix(_mix(_key(*place) + index.astype(np.uint64) * _GOLDEN))


def permutation(n: int, *place: int | str) -> NDArray[np.int64]:
    """A permutation of 0..n-1, (n,), that is a function of `place`."""
    return np.argsort(words(np.arange(n), *place), kind="stable")


@dataclass(frozen=True)
class Draws:
    """The random numbers of one operation for some views of a set of pictures.

    Attributes:
        index: positions of the pictures in their dataset, (B,), int64.
        seed, epoch: of the run. views: which augmented views, V of them. stream: which operation.
    """

    index: NDArray[np.int64]
    seed: int
    epoch: int
    views: Sequence[int] = (0,)
    stream: str = ""

    def of(self, stream: str) -> "Draws":
        """The draws of another operation for the same pictures."""
        return Draws(self.index, self.seed, self.epoch, self.views, stream)

    def uniform(self, n: int) -> NDArray[np.float64]:
        """Independent numbers in [0, 1), (V B, n), view after view; the first k columns do not depend on n."""
        base = np.concatenate([words(self.index, self.seed, self.epoch, view, self.stream) for view in self.views])
        counter = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
        return (_mix(base[:, None] + counter) >> np.uint64(11)).astype(np.float64) * 2.0**-53
