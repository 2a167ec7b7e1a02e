"""The linear probe: a classifier on frozen features, by the protocol of MoCo and SimSiam.

He et al., CVPR 2020 (arXiv 1911.05722), Sec. 4.1, and Chen and He, CVPR 2021 (arXiv 2011.10566), App. A: SGD with a
large learning rate and no weight decay, or LARS (`lowbit.train.optim`); the backbone in evaluation mode, its batch norm
as pretrained.

Two ways to the same head: `train_head_` on features taken once (evaluation recipe), and the objective of
`lowbit.evaluate.linear.linear_probe` for `lowbit.train.loop.fit` where training augmentation shows other pictures in
each epoch. Both take the same batches in the same order: without augmentation they give the same head.
"""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Literal, Self, get_args

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn
from torch.optim import Optimizer

from lowbit.errors import InputError
from lowbit.evaluate.cached import FeatureLoader
from lowbit.evaluate.classify import counts
from lowbit.evaluate.features import Features
from lowbit.train.optim import make_optimizer, make_schedule
from lowbit.train.process import broadcast_, until_stopped
from lowbit.train.protocol import Clock
from lowbit.train.schedule import Schedule

OptimizerName = Literal["sgd", "lars"]
ScheduleName = Literal["multistep", "cosine"]
SCORED_AT_ONCE = 4096  # pictures


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """How a probe is trained; the defaults are MoCo's.

    Attributes:
        lr: learning rate at the start, as it is (no scaling by the batch).
        momentum, weight_decay: of the optimizer.
        batch_size: pictures per step, over all processes.
        epochs: passes over the training set.
        schedule: "multistep" (times `gamma` at each of `milestones`) or "cosine" to 0; either moves each epoch.
        milestones: 0-based epochs, ascending.
        optimizer: "sgd" or "lars".

    Raises:
        InputError: a value is out of range.
    """

    lr: float = 30.0
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 256
    epochs: int = 100
    schedule: ScheduleName = "multistep"
    milestones: tuple[int, ...] = (60, 80)
    gamma: float = 0.1
    optimizer: OptimizerName = "sgd"

    def __post_init__(self) -> None:
        allowed: dict[str, tuple[bool, str]] = {
            "lr": (0 < self.lr < math.inf, "a number above 0"),
            "momentum": (0 <= self.momentum < 1, "0 or more, below 1"),
            "weight_decay": (0 <= self.weight_decay < math.inf, "0 or more"),
            "batch_size": (self.batch_size >= 1, "1 or more"),
            "epochs": (self.epochs >= 1, "1 or more"),
            "schedule": (self.schedule in get_args(ScheduleName), " or ".join(get_args(ScheduleName))),
            "milestones": (list(self.milestones) == sorted(set(self.milestones)), "ascending epochs"),
            "gamma": (0 < self.gamma <= 1, "above 0, at most 1"),
            "optimizer": (self.optimizer in get_args(OptimizerName), " or ".join(get_args(OptimizerName))),
        }
        for name, (good, wanted) in allowed.items():
            if not good:
                raise InputError(f"linear probe with {name} {getattr(self, name)}: give {wanted}")

    @classmethod
    def of_epochs(cls, lr: float, epochs: int) -> Self:
        """SGD for so many epochs, with milestones at 60 and 80 % of them, rounded up."""
        milestones = sorted({-(-epochs * part // 100) for part in (60, 80)} - {epochs})
        return cls(lr=lr, epochs=epochs, milestones=tuple(milestones))

    def rate(self) -> Schedule:
        """The learning rate by time, for `Stage.lr`."""
        name = "cosine" if self.schedule == "cosine" else "step"
        return make_schedule(name, self.lr, milestones=self.milestones, gamma=self.gamma, per_step=False)

    def optimizer_of(self, head: nn.Module) -> Optimizer:
        """The optimizer of a head."""
        rates = {"lr": self.lr, "momentum": self.momentum, "weight_decay": self.weight_decay}
        return make_optimizer(head.parameters(), self.optimizer, **rates)


def make_head(
    dim: int, classes: int, seed: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> nn.Linear:
    """A classifier (B, D) -> (B, classes) as MoCo starts it: weights of standard deviation 0.01 by seed, bias 0."""
    head = nn.utils.skip_init(nn.Linear, dim, classes, dtype=dtype, device=device)
    drawn = torch.randn(classes, dim, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        head.weight.copy_(0.01 * drawn)
        head.bias.zero_()
    return head


def train_head_(
    head: nn.Linear, train: Features, options: ProbeOptions, accelerator: Accelerator, seed: int = 0
) -> None:
    """Train a head on features taken once; every process trains the whole, and all end with the first one's.

    Args:
        head: (B, D) -> (B, classes), on the accelerator's device, of the features' dtype.
        train: labelled features.
        options: the protocol.
        accelerator: of the run.
        seed: of the order, which is `Loader`'s.

    Raises:
        InputError: no labels, features that are not finite, training that diverged.
        Stopped: a stop signal came (to any process).
    """
    if train.label is None:
        raise InputError("a linear probe needs labelled pictures")
    if not train.x.isfinite().all():
        raise InputError("linear probe: some features are not finite; the net's weights are damaged or it diverged")
    optimizer, rate = options.optimizer_of(head), options.rate()
    loader = FeatureLoader(train, global_batch=options.batch_size, seed=seed)
    batches = chain.from_iterable(loader.epoch(epoch) for epoch in range(options.epochs))
    for number, batch in enumerate(until_stopped(batches, accelerator)):
        epoch, step = divmod(number, len(loader))
        if step == 0:
            optimizer.param_groups[0]["lr"] = rate(Clock(0, epoch, options.epochs, 0, len(loader), seed))
        assert batch.label is not None
        optimizer.zero_grad()
        F.cross_entropy(head(batch.views[0]), batch.label).backward()
        optimizer.step()
    if accelerator.num_processes > 1:
        broadcast_(head.parameters())
    if not all(parameter.isfinite().all() for parameter in head.parameters()):
        raise InputError(f"the linear probe diverged at a learning rate of {options.lr:g}: give a smaller one")


@torch.no_grad()
def score_head(head: nn.Linear, test: Features) -> dict[str, float]:
    """`probe_top1`, `probe_top5` in percent and `probe_loss` (mean cross-entropy) of a head on labelled features.

    Features of fewer entries than the head takes are those of a narrower net: they meet its first columns.

    Raises:
        InputError: no labels.
    """
    if test.label is None:
        raise InputError("a linear probe is scored on labelled pictures")
    weight = head.weight[:, : test.x.shape[1]]
    parts = zip(test.x.split(SCORED_AT_ONCE), test.label.split(SCORED_AT_ONCE), strict=True)
    total = torch.stack([counts(F.linear(x, weight, head.bias), label) for x, label in parts]).sum(0)
    top1, top5, loss, pictures = total.tolist()
    return {"probe_top1": 100 * top1 / pictures, "probe_top5": 100 * top5 / pictures, "probe_loss": loss / pictures}
