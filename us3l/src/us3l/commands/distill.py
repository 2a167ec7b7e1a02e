"""`us3l distill`: a net learns without labels from a frozen teacher (SEED; Fang et al., ICLR 2021)."""

from functools import partial
from typing import Any

from lowbit.errors import InputError
from lowbit.options import RunOptions
from lowbit.train.run import Result
from us3l.commands.pretrain import pretrain
from us3l.config import Config
from us3l.methods import DISTILLED
from us3l.teacher import build_distillation, teacher_of


def distill(options: RunOptions, config: Config, **given: Any) -> Result | None:
    """See `us3l.commands.pretrain.pretrain`.

    Raises:
        InputError: a method without a teacher, or no teacher.
    """
    if config.method not in DISTILLED:
        raise InputError(f"SSL.TYPE={config.SSL.TYPE} has no teacher: run `us3l ssl`, or take {', '.join(DISTILLED)}")
    make = partial(build_distillation, teacher=teacher_of(config))
    return pretrain(options, config, **given, command="distill", make=make)
