"""Top-1, top-5 and cross-entropy of a classifier over an evaluation set."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain, islice, repeat
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError
from lowbit.train.process import first_ones_buffers, until_stopped


class Batches(Protocol):
    """What is evaluated: this process's batches, usually a `lowbit.data.loader.EvalLoader`."""

    def __len__(self) -> int:
        """Batches of this process."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """Batches with labels."""
        ...


class Scores(NamedTuple):
    """Figures over a whole set: accuracies in percent, `loss` the mean cross-entropy, `seconds` the time it took."""

    top1: float
    top5: float
    loss: float
    pictures: int
    seconds: float

    def results(self) -> dict[str, float]:
        """As entries of `result.json`."""
        return {**self._asdict(), "images_per_second": self.pictures / max(self.seconds, 1e-9)}


@contextmanager
def evaluating(model: nn.Module, accelerator: Accelerator | None = None) -> Iterator[None]:
    """Evaluation mode without gradients; every module's own mode is put back, also after an exception.

    With `accelerator` all its processes call this, and evaluate the first one's net (`first_ones_buffers`).
    """
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        same = nullcontext() if accelerator is None else first_ones_buffers(model, accelerator)
        with torch.no_grad(), same:
            yield
    finally:
        for module, training in modes.items():
            module.training = training


def counts(logits: Tensor, label: Tensor) -> Tensor:
    """Sums over one batch: (right at first, right among five, cross-entropy, pictures), (4,), float64.

    Args:
        logits: (B, classes), any floating dtype.
        label: (B,), int64.
    """
    wide = logits.double()
    order = wide.topk(min(5, wide.shape[1]), dim=1).indices
    right = order == label[:, None]
    loss = F.cross_entropy(wide, label, reduction="sum")
    return torch.stack([right[:, 0].sum().double(), right.sum().double(), loss, loss.new_tensor(len(label))])


def classify(model: nn.Module, batches: Batches, accelerator: Accelerator) -> Scores:
    """Evaluate a classifier; a short last batch counts by its pictures.

    Args:
        model: (B, C, H, W) -> (B, classes), on the batches' device. Pictures are cast to its dtype, so that a net in
            double precision sees the very pictures that it sees in single precision.
        batches: this process's share, whole batches; the sums of all processes are added.
        accelerator: of the run (processes, autocast).

    Returns:
        The same scores on every process.

    Raises:
        Stopped: a stop signal came (to any process); the model is as it was.
        InputError: the set is empty.
    """
    start = time.perf_counter()
    total = torch.zeros(4, dtype=torch.float64, device=accelerator.device)
    rounds = int(accelerator.gather(torch.tensor([len(batches)], device=accelerator.device)).max())
    dtype = next((p.dtype for p in model.parameters()), None)
    with evaluating(model, accelerator):
        for batch in until_stopped(islice(chain(batches, repeat(None)), rounds), accelerator, total=rounds):
            here = None if batch is None else batch.to(accelerator.device)
            if here is not None and here.label is not None:
                with accelerator.autocast():
                    logits = model(here.views[0].to(dtype))
                total += counts(logits, here.label)
    total = accelerator.reduce(total, "sum")
    top1, top5, loss, pictures = total.tolist()
    if not pictures:
        raise InputError("there is no labelled picture to evaluate: check --data and --limit-eval")
    seconds = time.perf_counter() - start
    return Scores(100 * top1 / pictures, 100 * top5 / pictures, loss / pictures, int(pictures), seconds)
