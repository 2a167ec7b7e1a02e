"""The optimizer and the learning rate: the authors' (Adam; steps, or `--cos`), or those of `--opt` and `--sched`.

Rates move once an epoch. `--cos` is a linear decay in the authors' program, and here; `--true-cosine` is a cosine.
Weight decay is an L2 term of all parameters, as there.
"""

from torch import nn
from torch.optim import Optimizer

from lowbit.errors import InputError
from lowbit.train.optim import make_optimizer, make_schedule, parameter_groups
from lowbit.train.schedule import Schedule
from s2bnn.options import PretrainOptions

BETA = 0.9  # the first one of Adam


def optimizer(own: PretrainOptions, module: nn.Module) -> Optimizer:
    """Over all that is trained; the authors' Adam has nothing of `--momentum`."""
    momentum = BETA if own.opt is None else own.momentum
    return make_optimizer(parameter_groups(module, own.weight_decay), own.opt or "adam", lr=own.lr, momentum=momentum)


def rate(own: PretrainOptions) -> Schedule:
    """The learning rate by epoch.

    Raises:
        InputError: several are chosen.
    """
    given = {"--cos": own.cos and "linear", "--true-cosine": own.true_cosine and "cosine", "--sched": own.sched}
    chosen = {flag: name for flag, name in given.items() if name}
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)} each choose the learning rate by epoch: give one of them")
    name = next(iter(chosen.values()), "step")
    return make_schedule(str(name), own.lr, milestones=own.schedule, warmup_epochs=own.warmup_epochs, per_step=False)
