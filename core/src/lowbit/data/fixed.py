"""Pictures drawn once by a seed and the same for every process: for calibration and for batch-norm statistics.

The ranges of activations and batch-norm statistics are found on them, so that a result can be repeated and several
processes give what one gives: each of them sees all of these pictures.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch

from lowbit.data.batch import Batch
from lowbit.data.hashing import permutation
from lowbit.data.loader import EvalLoader, Loader
from lowbit.data.pictures import Pictures
from lowbit.data.recipe import Recipe

BATCH = 256  # pictures
WHOLE = {"rank": 0, "world": 1}


class FixedPictures:
    """Some pictures of a set, chosen once by a seed.

    Args:
        pictures: the set.
        count: how many; all of a smaller set.
        seed: of the choice, and of training's order and draws.
        options: of loaders, as all of a command have them; `rank` and `world` are replaced.

    Attributes:
        pictures: those that were chosen.
    """

    def __init__(self, pictures: Pictures, count: int, seed: int, options: Mapping[str, Any]) -> None:
        self.pictures, self.seed, self.options = seeded_subset(pictures, count, seed), seed, options

    def __len__(self) -> int:
        return len(self.pictures)

    def evaluated(self, recipe: Recipe) -> EvalLoader:
        """All of them, in order, as evaluation shows them: for calibration."""
        return EvalLoader(self.pictures, recipe, batch_size=BATCH, **{**self.options, **WHOLE})

    def trained(self, recipe: Recipe) -> Iterator[Batch]:
        """Full batches, as training shows them (the first view): for batch-norm statistics."""
        return shuffled(self.pictures, recipe, self.options, seed=self.seed)


def seeded_subset(pictures: Pictures, count: int, seed: int) -> Pictures:
    """`count` pictures of a set (all of a smaller one), in an order drawn by `seed`."""
    order = permutation(len(pictures), seed, "calibration")
    return pictures.subset(torch.from_numpy(order[:count].copy()))


def shuffled(
    pictures: Pictures,
    recipe: Recipe,
    options: Mapping[str, Any],
    *,
    seed: int,
    batch: int = BATCH,
    limit: int | None = None,
) -> Iterator[Batch]:
    """Full batches in an order drawn by `seed`, without labels; a smaller last batch is left out.

    Args:
        pictures: the set.
        recipe: the training's for batch-norm statistics; its draws are those of epoch 0 and `seed`.
        options: of `Loader`, as all loaders of a command have them; `rank` and `world` are replaced.
        seed: of the order and the draws.
        batch: pictures per batch; all of a smaller set.
        limit: batches; None: all.
    """
    size = min(batch, len(pictures))
    loader = Loader(
        pictures, recipe, global_batch=size, seed=seed, drop_last=True, labels=False, **{**options, **WHOLE}
    )
    return islice(loader.epoch(0), limit)
