"""Weighted k-nearest-neighbour classification of frozen features: how good they are, without training anything.

Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018 (arXiv 1805.01978),
Sec. 3.4: the k bank rows most similar by cosine each vote for their class with exp(similarity / temperature).

A class for which none of them voted is no answer, so that top-5 may have fewer than five.

Deviations: the votes of a query are divided by that of its best neighbour, which changes no order, and summed as
integers of 54 bits and more at k = 200, so that a sum depends neither on the order of its terms nor on the machine.
Ties: of equal similarities the earlier bank row is taken, of equal votes the smaller class.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.evaluate.classify import Batches
from lowbit.evaluate.features import Encode, Features, extract, pooled
from lowbit.train.epochs import after_every
from lowbit.train.process import until_stopped
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe

K, TEMPERATURE = 200, 0.1
AT_ONCE = 2**24  # similarities held at a time


def check_neighbours(k: int, temperature: float, bank: int) -> None:
    """Whether a bank of so many pictures can be asked; ask it before training starts.

    Raises:
        InputError: k is not in 1..bank, or the temperature is not above 0.
    """
    if not 1 <= k <= bank:
        raise InputError(f"k-NN with k = {k}: the bank holds {bank} pictures; give 1 to {bank}")
    if not 0 < temperature < float("inf"):
        raise InputError(f"k-NN with temperature {temperature}: give a number above 0, such as {TEMPERATURE}")


def nearest(similarity: Tensor, k: int) -> Tensor:
    """Positions of the k largest of each row, (B, N) -> (B, k), ascending; of equal ones the first."""
    least = similarity.topk(k, dim=1).values[:, -1:]
    chosen, level = similarity > least, similarity == least
    room = k - chosen.sum(1, keepdim=True)
    if (level.sum(1, keepdim=True) > room).any():
        level &= level.cumsum(1) <= room
    return (chosen | level).nonzero()[:, 1].view(len(similarity), k)


def rank_classes(similarity: Tensor, label: Tensor, k: int, temperature: float, classes: int) -> tuple[Tensor, Tensor]:
    """Classes by votes, most first, (B, classes), and how many of them have a vote, (B,).

    Those without a vote come last in their own order; they are no answer.

    Args:
        similarity: of B queries to N bank rows, (B, N), in [-1, 1].
        label: of the bank rows, (N,), int64.
        k: neighbours that vote.
        temperature: the smaller, the more the nearest decide.
        classes: number of classes.
    """
    where = nearest(similarity, k)
    near = similarity.gather(1, where).double()
    weight = torch.exp((near - near.amax(1, keepdim=True)) / temperature)
    votes = (weight * 2.0 ** (62 - k.bit_length())).round().long()  # k of them fit into 63 bits
    none = votes.new_zeros(len(near), classes)
    voted = none.scatter(1, label[where], 1)  # also where all its votes were rounded to 0
    total = none.scatter_add(1, label[where], votes).add_(voted)
    return total.argsort(dim=1, descending=True, stable=True), voted.sum(1)


@torch.no_grad()
def knn(
    bank: Features, queries: Features, accelerator: Accelerator, *, k: int = K, temperature: float = TEMPERATURE
) -> dict[str, float]:
    """Accuracy of weighted k-NN; processes share the queries.

    Args:
        bank: features of the training set.
        queries: features of the test set, of the same net.
        accelerator: of the run.
        k: neighbours.
        temperature: of the votes.

    Returns:
        `knn_top1`, `knn_top5` in percent, `knn_k`, `knn_temperature`; the same on every process.

    Raises:
        InputError: k or temperature is out of range, labels are missing, features are not finite.
        Stopped: a stop signal came (to any process).
    """
    check_neighbours(k, temperature, len(bank.x))
    if bank.label is None or queries.label is None:
        raise InputError("k-NN needs labelled pictures, in the bank and in the test set")
    if not (bank.x.isfinite().all() and queries.x.isfinite().all()):
        raise InputError("k-NN: some features are not finite; the net's weights are damaged or it diverged")
    known, asked = F.normalize(bank.x, dim=1), F.normalize(queries.x, dim=1)
    classes = int(bank.label.max()) + 1
    rank, world = accelerator.process_index, accelerator.num_processes
    starts = range(0, len(asked), max(1, AT_ONCE // len(known)))
    right = torch.zeros(2, dtype=torch.int64, device=asked.device)
    for first in until_stopped(range(0, len(starts), world), accelerator):
        if first + rank < len(starts):
            here = slice(starts[first + rank], starts[first + rank] + starts.step)
            ranked, voted = rank_classes(asked[here] @ known.T, bank.label, k, temperature, classes)
            place = torch.arange(min(5, classes), device=asked.device)
            hit = (ranked[:, :5] == queries.label[here, None]) & (place < voted[:, None])
            right += torch.stack([hit[:, 0].sum(), hit.sum()])
    top1, top5 = (100 * accelerator.reduce(right, "sum").double() / len(asked)).tolist()
    return {"knn_top1": top1, "knn_top5": top5, "knn_k": k, "knn_temperature": temperature}


def knn_probe(
    net_of: Callable[[Objective], nn.Module],
    bank: Batches,
    test: Batches,
    accelerator: Accelerator,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
    every: int = 1,
    encode: Encode = pooled,
    context: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> Probe:
    """K-NN during pretraining, for `Run.probes`.

    Args:
        net_of: the net that is evaluated, out of the objective.
        bank: training pictures under the evaluation recipe.
        test: test pictures likewise.
        accelerator: of the run.
        k: neighbours; see `check_neighbours`. All pictures of the bank that can be read, where they are fewer.
        temperature: of the votes.
        every: epochs between two probes; the last epoch always has one.
        encode: what of the net is asked for.
        context: given the net, a context manager around its forwards: a width with the statistics that belong to it.
    """
    due = after_every(every)

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if not due(clock):
            return {}
        net = net_of(objective)
        with context(net):
            known, asked = extract(net, bank, accelerator, encode), extract(net, test, accelerator, encode)
        return knn(known, asked, accelerator, k=min(k, len(known.x)), temperature=temperature)

    return probe
