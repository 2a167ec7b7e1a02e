"""The optimizers, learning rates and parameter groups of all methods, by the names that users give them.

LARS is timm's with trust coefficient 0.001 and no clipping. It is set to adapt at weight decay 0, too, where it would
otherwise be plain SGD (You, Gitman, Ginsburg, "Large Batch Training of Convolutional Networks", 2017).
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from timm.optim import Lars
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from lowbit.options import SgdOptions
from lowbit.train import schedule
from lowbit.train.schedule import Schedule, cosine, linear, warmed_up

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, Any]]


def make_optimizer(
    parameters: Parameters, name: str = "sgd", *, lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> Optimizer:
    """An optimizer of a network.

    Args:
        parameters: of the network, or groups of them.
        name: "sgd", "nesterov" (SGD with Nesterov's step), "adam", "adamw" or "lars".
        lr: learning rate; in a run `Stage.lr` sets it.
        momentum: of SGD and LARS; of Adam and AdamW the first beta.
        weight_decay: of groups that state none.
    """
    if name in ("adam", "adamw"):
        kind = Adam if name == "adam" else AdamW
        return kind(parameters, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay)
    common: dict[str, Any] = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
    if name == "lars":
        return Lars(parameters, **common, trust_coeff=0.001, trust_clip=False, always_adapt=True)
    kinds: dict[str, Callable[..., Optimizer]] = {"sgd": SGD, "nesterov": partial(SGD, nesterov=True)}
    return kinds[name](parameters, **common)


def make_schedule(
    name: str,
    lr: float,
    *,
    milestones: Sequence[int] = (),
    gamma: float = 0.1,
    end: float = 0.0,
    warmup_epochs: int = 0,
    per_step: bool = True,
) -> Schedule:
    """A learning rate by time.

    Args:
        name: "step" (times `gamma` at each of the `milestones`), "cosine" or "linear" (to `end` over the stage).
        lr: the full rate.
        milestones: 0-based epochs.
        gamma: factor at each.
        end: the last rate of the others.
        warmup_epochs: epochs in which the rate rises to what the schedule says.
        per_step: whether the others move every step, else every epoch.
    """
    if name in ("cosine", "linear"):
        return warmed_up((cosine if name == "cosine" else linear)(lr, end, per_step=per_step), warmup_epochs)
    return warmed_up({"step": schedule.milestones}[name](lr, milestones, gamma), warmup_epochs)


def parameter_groups(
    module: nn.Module, weight_decay: float, *, decay_norm_and_bias: bool = True, fixed: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The trained parameters of a module, grouped by decay and by learning rate.

    Args:
        module: network or objective.
        weight_decay: of all, or of weights alone.
        decay_norm_and_bias: False leaves tensors of fewer than two dimensions without decay.
        fixed: beginnings of the names whose rate is `Stage.lr["fixed"]`; that of all others is `Stage.lr["main"]`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decays = decay_norm_and_bias or parameter.dim() > 1
            groups.setdefault((name.startswith(tuple(fixed)), decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "weight_decay": weight_decay if decays else 0.0,
            "schedule": "fixed" if constant else "main",
        }
        for (constant, decays), parameters in groups.items()
    ]


def stated_optimizer(parameters: Parameters, options: SgdOptions) -> Optimizer:
    """The optimizer that the options of a command state; SGD unless they say otherwise."""
    rates = {"lr": options.lr, "momentum": options.momentum, "weight_decay": options.weight_decay}
    return make_optimizer(parameters, options.opt or "sgd", **rates)


def stated_schedule(options: SgdOptions) -> Schedule:
    """The learning rate that they state; steps unless they say otherwise."""
    return make_schedule(
        options.sched or "step",
        options.lr,
        milestones=options.schedule,
        gamma=options.gamma,
        warmup_epochs=options.warmup_epochs,
    )
