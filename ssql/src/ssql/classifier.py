"""From a config to what `linear` and `default` train: a classifier at its bits, its optimizer, its learning rate."""

import torch
from torch import nn
from torch.optim import Optimizer

from lowbit.models.create import create_model
from lowbit.quant.bitwidths import set_bits_, set_mode_
from lowbit.train.optim import make_optimizer, make_schedule
from lowbit.train.schedule import Schedule
from ssql.config import Config, Quant
from ssql.methods import groups_of, quantize_


def is_quantized(quant: Quant) -> bool:
    """Whether anything of a classifier is: at 0/0 bits nothing, or with `FP=authors` the pinned places."""
    return bool(quant.W.BIT or quant.A.BIT or quant.FP == "authors")


def classifier(config: Config, size: tuple[int, int, int], classes: int) -> nn.Module:
    """A net drawn from `SEED`, at the bits of `QUANT.W.BIT` and `QUANT.A.BIT`, its ranges still to be found.

    Its last layer is float. Where nothing is quantized it is timm's net as it is.

    Args:
        config: resolved.
        size: (C, H, W) of the pictures.
        classes: outputs.

    Raises:
        InputError: an unknown net, or pins in `QUANT.BIT_CONFIG` that do not fit it.
    """
    quant = config.QUANT
    torch.manual_seed(config.SEED or 0)
    net = create_model(config.MODEL.ARCH, num_classes=classes)
    if is_quantized(quant):
        quantize_(net, quant, size)
        set_bits_(net, quant.W.BIT, quant.A.BIT, keep_pins=quant.FP == "authors")
        set_mode_(net, "quantized")
    return net


def optimizer(config: Config, net: nn.Module) -> Optimizer:
    """SGD or LARS over what is trained of a classifier."""
    lr, momentum = config.TRAIN.LR_SCHEDULER.BASE_LR, config.TRAIN.OPTIMIZER.MOMENTUM
    return make_optimizer(groups_of(config, net), config.TRAIN.OPTIMIZER.NAME or "sgd", lr=lr, momentum=momentum)


def rates(config: Config) -> dict[str, Schedule]:
    """By epoch: a cosine to 0, or times 0.1 at each milestone (none: constant), by `LR_SCHEDULER.TYPE`."""
    schedule = config.TRAIN.LR_SCHEDULER
    name = "cosine" if schedule.TYPE == "cosine" else "step"
    made = make_schedule(name, schedule.BASE_LR, milestones=schedule.DECAY_MILESTONES, per_step=False)
    return {"main": made}
