"""Optimizers and learning rates: the authors' (Adam, SGD; steps, or `--cos`), or those of `--opt` and `--sched`.

Rates move once an epoch. `--cos` is a linear decay in the authors' program, and here; `--true-cosine` is a cosine.
Weight decay is an L2 term of all parameters, as there.
"""

from torch import nn
from torch.optim import Optimizer

from lowbit.errors import InputError
from lowbit.train.optim import make_optimizer, make_schedule, parameter_groups
from lowbit.train.schedule import Schedule
from s2bnn.options import PretrainOptions, TrainOptions

BETA = 0.9  # the first one of Adam


def optimizer(own: TrainOptions, authors: str, module: nn.Module) -> Optimizer:
    """Over all that is trained; the `authors`' own where none is named, whose Adam has nothing of `--momentum`."""
    momentum = BETA if (own.opt, authors) == (None, "adam") else own.momentum
    return make_optimizer(parameter_groups(module, own.weight_decay), own.opt or authors, lr=own.lr, momentum=momentum)


def rate(own: TrainOptions, name: str, lr: float) -> Schedule:
    """The learning rate by epoch; `name` as in `lowbit.train.optim.make_schedule`."""
    return make_schedule(name, lr, milestones=own.schedule, warmup_epochs=own.warmup_epochs, per_step=False)


def pretrain_rate(own: PretrainOptions) -> Schedule:
    """That of `main_moco`.

    Raises:
        InputError: several are chosen.
    """
    given = {"--cos": own.cos and "linear", "--true-cosine": own.true_cosine and "cosine", "--sched": own.sched}
    chosen = {flag: str(name) for flag, name in given.items() if name}
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} each choose the learning rate by epoch: give one of them")
    return rate(own, next(iter(chosen.values()), "step"), own.lr)
