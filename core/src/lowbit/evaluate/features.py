"""Features of a frozen net over a whole set: in the set's order, equal on all processes, labels only if there are any.

Processes take whole batches each (`lowbit.data.loader.EvalLoader`), and `Batch.index` puts their rows in order again,
also where unreadable pictures were left out. So N processes give what one gives, to the last bit of each forward.
"""

from collections.abc import Callable
from itertools import chain, islice, repeat
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.evaluate.classify import Batches, evaluating
from lowbit.train.process import until_stopped

Encode = Callable[[Any, Tensor], Tensor]  # (net, (B, C, H, W)) -> (B, D)


class Features(NamedTuple):
    """Rows of a set, on the compute device of every process.

    Attributes:
        x: (N, D), float32, or float64 from a net in double precision.
        label: (N,), int64; None where the batches had none.
    """

    x: Tensor
    label: Tensor | None


def pooled(net: Any, x: Tensor) -> Tensor:
    """What a timm net gives its classifier, (B, D), whatever stands there by now; of any other net, its output."""
    if hasattr(net, "forward_features") and hasattr(net, "forward_head"):
        return net.forward_head(net.forward_features(x), pre_logits=True)
    return net(x)


class AsEvaluated(nn.Module):
    """A net whose every forward is evaluation's: pictures cast to its dtype, under the run's autocast.

    The autocast is of the forward alone: pictures prepared inside it would be other ones.
    """

    def __init__(self, net: nn.Module, accelerator: Accelerator) -> None:
        super().__init__()
        self.net, self.accelerator = net, accelerator

    def forward(self, x: Tensor) -> Tensor:
        """What the net returns."""
        dtype = next((p.dtype for p in self.net.parameters()), None)
        with self.accelerator.autocast():
            return self.net(x.to(dtype))


def outputs(net: Any, x: Tensor) -> Tensor:
    """What the net returns, (B, D): of an encoder with its projector in the classifier's place, z."""
    return net(x)


def extract(net: nn.Module, batches: Batches, accelerator: Accelerator, encode: Encode = pooled) -> Features:
    """Run a set through a net in evaluation mode, without gradients.

    Args:
        net: on the accelerator's device. Pictures are cast to its dtype; modes are put back.
        batches: this process's share, with `index` telling pictures apart. The first view is taken.
        accelerator: of the run (processes, autocast).
        encode: what of the net is asked for.

    Returns:
        The whole set's features, ordered by `Batch.index`, the same on every process.

    Raises:
        Stopped: a stop signal came (to any process).
        InputError: the set is empty.
    """
    device = accelerator.device
    dtype = next((p.dtype for p in net.parameters()), None)
    rounds = int(accelerator.gather(torch.tensor([len(batches)], device=device)).max())
    x, index, label = [], [], []
    with evaluating(net, accelerator):
        for batch in until_stopped(islice(chain(batches, repeat(None)), rounds), accelerator, total=rounds):
            if batch is None:  # another process still has some
                continue
            here = batch.to(device)
            with accelerator.autocast():
                h = encode(net, here.views[0].to(dtype))
            if h.dim() != 2:
                raise ValueError(f"features have to be (B, D), not {tuple(h.shape)}")
            x.append(h.to(torch.promote_types(h.dtype, torch.float32)))
            index.append(here.index)
            label.append(torch.full_like(here.index, -1) if here.label is None else here.label)
    return _gathered(x, index, label, accelerator)


def _gathered(x: list[Tensor], index: list[Tensor], label: list[Tensor], accelerator: Accelerator) -> Features:
    """The rows of all processes in the order of their index; a process may have none."""
    rows = sum(len(part) for part in index)
    mine = [rows, x[0].shape[1], int(x[0].dtype == torch.float64)] if rows else [0, 0, 0]
    facts = accelerator.gather(torch.tensor([mine], device=accelerator.device))
    most, dim, double = facts.max(dim=0).values.tolist()
    if not most:
        raise InputError("there is no picture to take features of: check --data and --limit-train, --limit-eval")

    def whole(parts: list[Tensor], shape: tuple[int, ...], fill: int, dtype: torch.dtype) -> Tensor:
        padded = torch.full((most, *shape), fill, dtype=dtype, device=accelerator.device)
        if parts:
            torch.cat(parts, out=padded[:rows])
        return accelerator.gather(padded)

    places = whole(index, (), -1, torch.int64)
    kept = torch.argsort(places, stable=True)[int((places < 0).sum()) :]
    labels = whole(label, (), -1, torch.int64)[kept]
    features = whole(x, (dim,), 0, torch.float64 if double else torch.float32)[kept]
    return Features(features, None if (labels < 0).any() else labels)
