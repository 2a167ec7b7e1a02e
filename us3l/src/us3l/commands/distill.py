"""`us3l distill`: a net learns without labels from a frozen teacher (SEED; Fang et al., ICLR 2021)."""

from functools import partial
from typing import Any

from lowbit.errors import InputError
from lowbit.options import RunOptions
from lowbit.train.run import Result
from us3l.commands.pretrain import pretrain
from us3l.config import Config
from us3l.methods import DISTILLED, build
from us3l.teacher import teacher_of


def distill(options: RunOptions, config: Config, **given: Any) -> Result | None:
    """See `us3l.commands.pretrain.pretrain`.

    Raises:
        InputError: a method without a teacher, or no teacher.
    """
    if config.method not in DISTILLED:
        raise InputError(f"SSL.TYPE={config.SSL.TYPE} has no teacher: run `us3l ssl`, or take {', '.join(DISTILLED)}")
    return pretrain(options, config, **given, command="distill", make=partial(build, teacher=teacher_of(config)))
