"""The optimizer and the learning rate of a command: the authors', or those of `--opt`, `--sched`, `--warmup-epochs`.

SGD under a cosine or under steps, as `TRAIN.LR_SCHEDULER.TYPE` says, which moves once an epoch. The warm-up of
`WARMUP_EPOCHS` is the authors': rate * epoch / epochs of the warm-up, so that the first epoch has rate 0, then the
cosine over what is left. Group regularization takes the place of weight decay.

Deviation: `TRAIN.OPTIMIZER.NAME` is read in every command (their pretraining is SGD whatever it says).
"""

from torch import nn
from torch.optim import Optimizer

from lowbit.config.tree import with_values
from lowbit.errors import InputError
from lowbit.options import OptimOptions
from lowbit.train.configured import optimizer_of, schedule_of
from lowbit.train.schedule import Schedule
from us3l.config import Config
from us3l.unused_keys import Command

AUTHORS = OptimOptions()
REGULARIZED = ("ssl", "distill")  # commands


def optimizer(config: Config, module: nn.Module, command: Command, optim: OptimOptions = AUTHORS) -> Optimizer:
    """Over all that is trained of an objective or a classifier."""
    if command in REGULARIZED and config.MODEL.OFA.REGULARIZER:
        config = with_values(config, {"TRAIN.OPTIMIZER.WEIGHT_DECAY": 0.0})
    return optimizer_of(config.TRAIN, module, optim.opt or config.TRAIN.OPTIMIZER.NAME or "sgd")


def rates(config: Config, command: Command, optim: OptimOptions = AUTHORS) -> dict[str, Schedule]:
    """The learning rate by epoch, "main".

    Raises:
        InputError: the warm-up takes all epochs.
    """
    keys = config.TRAIN.LR_SCHEDULER
    main = schedule_of(config.TRAIN, optim.sched or config.schedule, optim.warmup_epochs)
    if command == "ssl" and keys.WARMUP_EPOCHS and not optim.warmup_epochs:
        warmup, epochs = keys.WARMUP_EPOCHS, config.TRAIN.EPOCHS
        if warmup >= epochs:
            raise InputError(f"TRAIN.LR_SCHEDULER.WARMUP_EPOCHS={warmup} of TRAIN.EPOCHS={epochs}: give fewer")
        main = rising(main, keys.BASE_LR, warmup)
    return {"main": main}


def rising(schedule: Schedule, base: float, epochs: int) -> Schedule:
    """The authors' warm-up: 0, base / epochs, ..., one step an epoch; then the schedule over the epochs that remain."""
    return lambda clock: (
        base * clock.epoch / epochs
        if clock.epoch < epochs
        else schedule(clock._replace(epoch=clock.epoch - epochs, epochs=clock.epochs - epochs))
    )
