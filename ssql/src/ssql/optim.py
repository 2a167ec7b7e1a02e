"""The optimizer and the learning rates of a command: the authors', or those of `--opt`, `--sched`, `--warmup-epochs`.

The authors' `ssl` is SGD under a cosine that moves once an epoch, whatever the keys say. `linear` and `default` read
`TRAIN.OPTIMIZER.NAME` (SGD or LARS) and `TRAIN.LR_SCHEDULER.TYPE` (that cosine, else times 0.1 at each milestone).
"""

from torch import nn
from torch.optim import Optimizer

from lowbit.options import OptimOptions
from lowbit.train.configured import optimizer_of, schedule_of
from lowbit.train.schedule import Schedule, constant
from ssql.config import Config, schedule_name
from ssql.unused_keys import Command

AUTHORS = OptimOptions()


def optimizer(config: Config, module: nn.Module, command: Command, optim: OptimOptions = AUTHORS) -> Optimizer:
    """Over all that is trained of an objective or a classifier."""
    name = optim.opt or ("sgd" if command == "ssl" else config.TRAIN.OPTIMIZER.NAME or "sgd")
    fixed = ("predictor.",) if config.SSL.SETTING.PREDICTOR_LR == "fixed" else ()
    return optimizer_of(config.TRAIN, module, name, fixed)


def rates(config: Config, command: Command, optim: OptimOptions = AUTHORS) -> dict[str, Schedule]:
    """Learning rates by epoch; `ssl` has a "fixed" one for a predictor under `SSL.SETTING.PREDICTOR_LR=fixed`."""
    main = schedule_of(config.TRAIN, schedule_name(command, config, optim.sched), optim.warmup_epochs)
    return {"main": main, "fixed": constant(config.TRAIN.LR_SCHEDULER.BASE_LR)} if command == "ssl" else {"main": main}
