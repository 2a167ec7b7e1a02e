"""A frozen net's features, taken once: what a classifier is trained on where every epoch shows the same pictures."""

from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.data.hashing import permutation
from lowbit.evaluate.classify import Batches
from lowbit.evaluate.features import Features, extract


class FromFeatures(nn.Module):
    """A classifier of timm that takes pictures (B, C, H, W), or what its last layer gets, (B, D).

    Attributes:
        net: the classifier.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (B, classes)."""
        return self.net.get_classifier()(x) if x.dim() == 2 else self.net(x)  # type: ignore[operator]  # timm's


class FeatureLoader:
    """Batches of features in place of pictures: the same ones, in the same order as `lowbit.data.loader.Loader`'s.

    Args:
        features: labelled, of the whole set.
        global_batch: rows per step, over all ranks.
        seed: of the order.
        rank: this process, of `world`.
        world: number of processes.
        shuffle: a new order each epoch, else the set's.
    """

    def __init__(
        self, features: Features, *, global_batch: int, seed: int = 0, rank: int = 0, world: int = 1,
        shuffle: bool = True,
    ) -> None:  # fmt: skip
        self.features, self.global_batch, self.seed, self.shuffle = features, global_batch, seed, shuffle
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        """Steps per epoch."""
        return -(-len(self.features.x) // self.global_batch)

    @property
    def last_batch(self) -> int:
        """Rows in the last global batch of an epoch."""
        return len(self.features.x) - (len(self) - 1) * self.global_batch

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch from number `start` on: this rank's part of each, or the `whole` of each."""
        rank, world = (0, 1) if whole else (self.rank, self.world)
        (x, label), n = self.features, len(self.features.x)
        order = torch.from_numpy(permutation(n, self.seed, "order", epoch)) if self.shuffle else torch.arange(n)
        for batch in order.to(x.device).split(self.global_batch)[start:]:
            n = len(batch)
            here = batch[n * rank // world : n * (rank + 1) // world]
            yield Batch((x[here],), here, None if label is None else label[here], len(here) * world / n)


def cached(
    net: nn.Module,
    batches: Batches,
    accelerator: Accelerator,
    *,
    global_batch: int,
    seed: int = 0,
    shuffle: bool = True,
) -> FeatureLoader:
    """What a net's last layer gets of a set, this process's part of batches of `global_batch`.

    Args:
        net: on the accelerator's device; evaluation mode, without gradients.
        batches: this process's pictures, as of `EvalLoader`.
        accelerator: of the run.
        global_batch: rows per step, over all processes.
        seed: of the order.
        shuffle: a new order each epoch, else the set's.

    Raises:
        Stopped: a stop signal came (to any process).
        InputError: the set is empty.
    """
    found = extract(net, batches, accelerator)
    rank, world = accelerator.process_index, accelerator.num_processes
    return FeatureLoader(found, global_batch=global_batch, seed=seed, rank=rank, world=world, shuffle=shuffle)


def cached_batches(net: nn.Module, batches: Batches, accelerator: Accelerator, size: int) -> list[Batch]:
    """The same in the set's order, for evaluation: this process's part of batches of `size` over all processes."""
    return list(cached(net, batches, accelerator, global_batch=size, shuffle=False).epoch(0))
