"""What a checkpoint holds of optimizers: put in, checked, and put back."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lowbit.errors import InputError

MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq")  # of their parameter's shape
COUNTS = (torch.float32, torch.float64)  # of an optimizer's number of steps as a tensor
HELD = "parameters with state"
OPTIONS = (  # of torch's and timm's optimizers; they stand still, unlike the rate and what a method adapts
    "weight_decay", "momentum", "dampening", "nesterov", "maximize", "betas", "eps", "amsgrad", "trust_coeff",
    "trust_clip", "always_adapt",
)  # fmt: skip


def _check_state(values: Mapping[str, Any], parameter: Tensor) -> None:
    """Refuse what loading would convert silently, and what a step could not count on."""
    for key, value in values.items():
        if key in MOMENTS:
            right = isinstance(value, Tensor) and (value.dtype, value.shape) == (parameter.dtype, parameter.shape)
            if not right or not bool(torch.isfinite(value).all()):
                raise ValueError("its momentum is not of its parameter's type and shape, or not finite")
        elif key == "step":
            number = value.item() if isinstance(value, Tensor) and value.dtype in COUNTS and not value.dim() else value
            if type(number) not in (int, float) or not 1 <= number < math.inf:
                raise ValueError("its step is not a number of 1 or more")


def save_optimizers(optimizers: Mapping[str, Optimizer]) -> dict[str, dict[str, Any]]:
    """What `load_optimizers` puts back, with how many parameters have state; those without gradients have none."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return {name: {**state, HELD: len(state["state"])} for name, state in states.items()}


def load_optimizers(optimizers: Mapping[str, Optimizer], state: Mapping[str, Any]) -> None:
    """Put back what a checkpoint holds of optimizers: moments, rates, and what a method adapts in their groups.

    Raises:
        InputError: it holds other ones, or some of other `OPTIONS` than the run's.
    """
    if set(state) != set(optimizers):
        raise InputError(f"the checkpoint has optimizers {sorted(state)}, this run {sorted(optimizers)}")
    for name, optimizer in optimizers.items():
        try:
            states, own, saved = state[name]["state"], optimizer.param_groups, state[name]["param_groups"]
            trained = [parameter for group in own for parameter in group["params"]]
            for index, values in states.items():
                _check_state(values, trained[index])
            held = [{key: type(value) for key, value in values.items()} for values in states.values()]
            if any(one != held[0] for one in held) or len(states) != state[name].get(HELD, len(states)):
                raise ValueError("some parameters have other state than others")  # they would start from none
            if len(own) != len(saved):
                raise ValueError(f"it has {len(saved)} groups of parameters, this run {len(own)}")
            if [index for group in saved for index in group["params"]] != list(range(len(trained))):
                raise ValueError("its parameters have other numbers")
            groups = [_merge(*pair, name) for pair in zip(own, saved, strict=True)]
            optimizer.load_state_dict({"state": states, "param_groups": groups})
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"the checkpoint's optimizer {name} is another method's: {error}") from error


def _merge(own: Mapping[str, Any], saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A parameter group as the run makes it, with the numbers of the checkpoint's that change while a run goes on."""
    for option in (option for option in OPTIONS if option in own and option in saved):
        now, then = (tuple(g[option]) if option == "betas" else g[option] for g in (own, saved))
        if isinstance(then, Tensor) or now != then:
            raise InputError(
                f"--resume: the checkpoint's optimizer {name} has {option} {then!s:.60}, this run's {now}: resume with "
                "the options that the run was started with"
            )
    moving = {key for key, value in own.items() if key not in OPTIONS and type(value) in (int, float)}
    moved = {key: saved[key] for key in moving & saved.keys()}
    if not all(type(value) in (int, float) for value in moved.values()):
        raise ValueError(f"its {', '.join(sorted(moved))} are no numbers")
    return {**own, **moved, "params": saved["params"]}
