"""CRD and CKTF: the student's embedding of a picture is told from the teacher's of others, and the reverse.

Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020 (arXiv 1910.10699), Eq. 17-19 and its
memories (Wu et al., CVPR 2018, arXiv 1805.01978). CKTF: the authors of SQAKD, the same at the stem and in each stage.

Deviations: negatives are drawn with replacement; similarities with the whole memory are one product of matrices, of
which the drawn ones are taken, since taking K vectors of each picture costs more.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.losses.ranks import Ranks, gather_rows
from lowbit.train.protocol import Clock
from sqakd.kd.maps import Maps

EPS = 1e-7  # beside c
WINDOW = 8  # positions a side that CKTF averages over
DRAWS = 2**31 - 1


class Negatives(nn.Module):
    """Rows of the memories for each picture: its own, or with `relaxed` any of its class, and K of other classes.

    Args:
        labels: of all training pictures, (n,).
        count: K.
        relaxed: see above.

    Raises:
        InputError: all pictures are of one class.
    """

    order: Tensor
    starts: Tensor
    sizes: Tensor

    def __init__(self, labels: Tensor, count: int, relaxed: bool = False) -> None:
        super().__init__()
        sizes = labels.bincount()
        if int(sizes.max()) == len(labels):
            raise InputError(
                "--distill crd and crdst draw negatives of other classes, and all pictures are of one: change the data"
            )
        self.count, self.relaxed = count, relaxed
        given = {"order": labels.argsort(stable=True), "starts": sizes.cumsum(0) - sizes, "sizes": sizes}
        for name, value in given.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, batch: Batch, clock: Clock, layout: Ranks) -> Tensor:
        """(B, 1 + K), the positive first: a function of the clock and a picture's place in the whole batch.

        Raises:
            ValueError: the loader gave no labels.
        """
        if batch.label is None:
            raise ValueError("negatives are of other classes: build the loader with labels=True")
        shape, generator = (sum(layout.sizes), self.count + 1), clock.generator("negatives")
        drawn = torch.randint(DRAWS, shape, generator=generator, dtype=torch.int32)
        drawn = drawn[layout.start : layout.start + len(batch.index)].to(batch.index.device)
        start, size = (values[batch.label, None].int() for values in (self.starts, self.sizes))
        places = drawn.remainder(len(self.order) - size)
        places += (places >= start) * size  # the class's own are left out
        places[:, :1] = start + drawn[:, :1] % size
        rows = self.order[places]
        if not self.relaxed:
            rows[:, 0] = batch.index
        return rows


class ContrastLoss(nn.Module):
    """CRD's loss: embeddings of both, and a memory of each.

    -mean over the batch of [log h(positive) + sum over K negatives of log(1 - h)], h = p / (p + c), p = exp(v.m / T) /
    Z, c = K / n; v the student's embedding and m the teacher's memory, plus the reverse. Z is n times the mean of exp
    in the run's first batch.

    Args:
        widths: of the student's and the teacher's features.
        dim: of the embeddings.
        n: pictures.
        temperature: T.
        momentum: of the memories.
    """

    student_memory: Tensor
    teacher_memory: Tensor
    z: Tensor

    def __init__(self, widths: Sequence[int], dim: int, n: int, temperature: float, momentum: float) -> None:
        super().__init__()
        self.temperature, self.momentum = temperature, momentum
        self.student, self.teacher = (nn.Linear(width, dim) for width in widths)
        bound = (3 / dim) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, torch.empty(n, dim).uniform_(-bound, bound))
        self.register_buffer("z", torch.ones(2))

    def forward(
        self, fs: Maps, ft: Maps, rows: Tensor, layout: Ranks, clock: Clock
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Features (B, D) of both, rows (B, 1 + K) -> loss, both embeddings for `update_`."""
        s, t = (F.normalize(m(f[0]), dim=1) for m, f in ((self.student, fs), (self.teacher, ft)))
        scores = [
            (v / self.temperature) @ memory.T for v, memory in ((s, self.teacher_memory), (t, self.student_memory))
        ]
        taken = [score.gather(1, rows) for score in scores]
        if clock.stage == clock.epoch == clock.step == clock.micro == 0:
            means = torch.stack([score.detach().exp().mean(1) for score in taken], 1)
            self.z.copy_(gather_rows(means, layout).mean(0) * len(self.student_memory))
        return self._of(taken[0], self.z[0]) + self._of(taken[1], self.z[1]), (s.detach(), t.detach())

    def _of(self, score: Tensor, z: Tensor) -> Tensor:
        k = score.shape[1] - 1
        c = k / len(self.student_memory)
        x = score - (z * (c + EPS)).log()
        constant = k * torch.log(torch.tensor(c / (c + EPS), dtype=torch.float64))
        return (F.softplus(x).sum(1) - x[:, 0]).mean() - float(constant)  # -log h = softplus(x) - x

    @torch.no_grad()
    def update_(self, seen: tuple[Tensor, Tensor], index: Tensor, layout: Ranks) -> None:
        """Move the memories of the pictures `index` of all ranks towards their embeddings."""
        for memory, v in zip((self.student_memory, self.teacher_memory), seen, strict=True):
            moved = memory[index] * self.momentum + gather_rows(v, layout) * (1 - self.momentum)
            memory[index] = F.normalize(moved, dim=1).to(memory.dtype)


class Weights(NamedTuple):
    """Of CKTF: beta of its last term, theta of the others."""

    last: float
    others: float


class ContrastLosses(nn.Module):
    """CKTF: a CRD loss at the stem, in each stage and of the pooled features, on the same negatives.

    Args:
        losses: in that order.
        weights: of them.
        blocks: number of each stage's in the teacher.
        method: chooses one of them (`choose_block`).
    """

    def __init__(self, losses: Sequence[ContrastLoss], weights: Weights, blocks: Sequence[int], method: str) -> None:
        super().__init__()
        self.losses, self.weights = nn.ModuleList(losses), weights
        self.blocks, self.method = tuple(blocks), method

    def forward(
        self, fs: Maps, ft: Maps, rows: Tensor, layout: Ranks, clock: Clock
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """As `ContrastLoss`; maps of the student's stem and stages, of the teacher's stem and all blocks."""
        found = [
            loss([s], [t], rows, layout, clock)
            for loss, s, t in zip(self.losses, features(fs), features(self._chosen(fs, ft, clock)), strict=True)
        ]
        *others, last = (value for value, _ in found)
        return self.weights.last * last + self.weights.others * torch.stack(others).sum(), [seen for _, seen in found]

    def _chosen(self, fs: Maps, ft: Maps, clock: Clock) -> Maps:
        """The teacher's stem, and a block of each stage."""
        chosen, start = [ft[0]], 1
        for stage, count in enumerate(self.blocks):
            drawn = clock.key(f"block {stage}") if self.method == "Random" else 0
            there = ft[start : start + count]
            chosen.append(there[choose_block(fs[stage + 1], there, self.method, drawn)])
            start += count
        return chosen

    def update_(self, seen: Sequence[tuple[Tensor, Tensor]], index: Tensor, layout: Ranks) -> None:
        """Of all."""
        for loss, pair in zip(self.losses, seen, strict=True):
            loss.update_(pair, index, layout)  # type: ignore[operator]


def features(maps: Maps) -> list[Tensor]:
    """Of a stem and blocks: the stem's, the blocks', and the pooled ones of the last; each (B, D)."""
    return [averaged(maps[0]), *map(block_features, maps[1:]), maps[-1].mean((2, 3))]


def block_features(f: Tensor, window: int = WINDOW) -> Tensor:
    """(B, C, H, W) -> (B, D): of unit length over the batch, averaged over windows, flattened."""
    return averaged(F.normalize(f, dim=0), window)


def averaged(f: Tensor, window: int = WINDOW) -> Tensor:
    """(B, C, H, W) -> (B, D): averaged over windows of that side, or the whole map where it is smaller; flattened."""
    return F.avg_pool2d(f, min(window, f.shape[2])).flatten(1)


def choose_block(student: Tensor, blocks: Sequence[Tensor], method: str, drawn: int = 0) -> int:
    """Number of a teacher's block, by `--st_method`: its place, or its inner product with the student's last one.

    Args:
        student: map of the student's last block, (B, C, H, W).
        blocks: the teacher's, of the same shape where inner products are compared.
        method: of `sqakd.kd.registry.BLOCKS`.
        drawn: a random number, for "Random".
    """
    last = len(blocks) - 1
    if method in ("Last", "First", "Random"):
        return {"Last": last, "First": 0, "Random": drawn % len(blocks)}[method]
    alike = torch.stack([(F.normalize(student, dim=0) * F.normalize(block, dim=0)).sum() for block in blocks])
    return int(alike.argmin() if method == "Smallest" else alike.argmax())
