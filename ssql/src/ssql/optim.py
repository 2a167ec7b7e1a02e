"""The optimizer and the learning rates of a command: the authors', or those of `--opt`, `--sched`, `--warmup-epochs`.

The authors' `ssl` is SGD under a cosine that moves once an epoch, whatever the keys say. `linear` and `default` read
`TRAIN.OPTIMIZER.NAME` (SGD or LARS) and `TRAIN.LR_SCHEDULER.TYPE` (that cosine, or times 0.1 at each milestone; none:
constant).
"""

from torch import nn
from torch.optim import Optimizer

from lowbit.options import OptimOptions
from lowbit.train.optim import make_optimizer, make_schedule, parameter_groups
from lowbit.train.schedule import Schedule, constant
from ssql.config import Config, schedule_of
from ssql.unused_keys import Command

AUTHORS = OptimOptions()


def optimizer(config: Config, module: nn.Module, command: Command, optim: OptimOptions = AUTHORS) -> Optimizer:
    """Over all that is trained; groups for a fixed predictor rate and for what weight decay leaves out.

    Args:
        config: resolved.
        module: an objective or a classifier.
        command: its name.
        optim: `opt` replaces the authors' optimizer.
    """
    options, fixed = config.TRAIN.OPTIMIZER, config.SSL.SETTING.PREDICTOR_LR == "fixed"
    groups = parameter_groups(
        module,
        options.WEIGHT_DECAY,
        decay_norm_and_bias=options.DECAY_NORM_AND_BIAS,
        fixed=("predictor.",) if fixed else (),
    )
    name = optim.opt or ("sgd" if command == "ssl" else options.NAME or "sgd")
    return make_optimizer(groups, name, lr=config.TRAIN.LR_SCHEDULER.BASE_LR, momentum=options.MOMENTUM)


def rates(config: Config, command: Command, optim: OptimOptions = AUTHORS) -> dict[str, Schedule]:
    """Learning rates by epoch; `ssl` has a "fixed" one for a predictor under `SSL.SETTING.PREDICTOR_LR=fixed`.

    Args:
        config: resolved.
        command: its name.
        optim: `sched` replaces the authors' schedule, `warmup_epochs` comes before it.
    """
    keys = config.TRAIN.LR_SCHEDULER
    main = make_schedule(
        schedule_of(command, config, optim.sched),
        keys.BASE_LR,
        milestones=keys.DECAY_MILESTONES,
        warmup_epochs=optim.warmup_epochs,
        per_step=False,
    )
    return {"main": main, "fixed": constant(keys.BASE_LR)} if command == "ssl" else {"main": main}
