"""Two optimizers, of the weights and of what quantizers learn, and their learning rates."""

import math
from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from lowbit.quant.learned_layers import quantizer_parameters
from lowbit.train.optim import make_optimizer, make_schedule
from lowbit.train.protocol import Clock
from lowbit.train.schedule import Schedule
from sqakd.options import TINY, TrainOptions

FIRST = 1e-4  # the rate that the warm-up of `main` starts from


def optimizers(own: TrainOptions, student: nn.Module) -> dict[str, Optimizer]:
    """By name: "main", and "quantizer" where quantizers have parameters."""
    learned = quantizer_parameters(student)
    rest = [p for name, p in student.named_parameters() if p.requires_grad and name not in learned]
    found = {"main": _optimizer(own, rest, own.optimizer_m, own.lr_m, own.weight_decay)}
    if learned:
        found["quantizer"] = _optimizer(own, learned.values(), own.optimizer_q, own.lr_q, own.weight_decay_q)
    return found


def _optimizer(own: TrainOptions, of: Iterable[nn.Parameter], name: str, lr: float, decay: float) -> Optimizer:
    name = "nesterov" if own.nesterov and name == "sgd" and own.momentum else name
    momentum = {} if name.startswith("adam") else {"momentum": own.momentum}  # the authors' Adam has its usual betas
    return make_optimizer(of, name, lr=lr, weight_decay=decay, **momentum)


def rates(own: TrainOptions) -> dict[str, Schedule]:
    """Of both, by time."""
    given = {
        "main": (own.lr_scheduler_m, own.lr_m, own.lr_m_end, own.decay_schedule_m),
        "quantizer": (own.lr_scheduler_q, own.lr_q, own.lr_q_end, own.decay_schedule_q),
    }
    if own.command == TINY and own.lr_scheduler_m == "cosine" and not own.warmup_epochs:
        return {name: tiny_schedule(lr, own.warmup_steps, end) for name, (_, lr, end, _) in given.items()}
    more = {"gamma": own.gamma, "warmup_epochs": own.warmup_epochs, "per_step": False}
    return {
        name: make_schedule(sched, lr, milestones=at, end=end, **more)  # type: ignore[arg-type]
        for name, (sched, lr, end, at) in given.items()
    }


def tiny_schedule(peak: float, warmup: int, end: float = 0.0) -> Schedule:
    """Of `main`, by iteration t of T: a line from 1e-4 to the peak in W steps, then half a cosine.

    1e-4 + (peak - 1e-4) / (W - 1) (t - 1) for t < W (so just below 1e-4 at 0), else
    end + (peak - end) (1 + cos(pi (t - W) / (T - W))) / 2. `warmup` is W, in steps.
    """

    def rate(clock: Clock) -> float:
        t, total = clock.epoch * clock.steps_per_epoch + clock.step, clock.epochs * clock.steps_per_epoch
        if t < warmup:
            return FIRST + (peak - FIRST) / max(warmup - 1, 1) * (t - 1)
        return end + (peak - end) * (1 + math.cos(math.pi * (t - warmup) / max(total - warmup, 1))) / 2

    return rate
