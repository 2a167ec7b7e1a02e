"""What the training commands share: what is refused or reported of a config, and half precision."""

import dataclasses
import logging

from lowbit.errors import InputError
from lowbit.models.create import check_arch
from lowbit.options import RunOptions
from lowbit.train.configured import refuse
from lowbit.train.process import has_gpu
from lowbit.train.session import Session
from us3l.config import Config

log = logging.getLogger(__name__)


def check_config(command: str, options: RunOptions, config: Config) -> None:
    """What no training from drawn weights does.

    Raises:
        InputError: a key that has to be set and is not, or an option or a value that asks for what is not here.
    """
    config.check_training()
    model = config.MODEL
    check_arch(model.net.name)
    if model.net.kind == "plain" and config.trained_widths() != (1.0,):
        raise InputError(
            f"MODEL.ARCH={model.ARCH} runs at width 1 alone: name us_{model.ARCH} or s_{model.ARCH} (a list)"
        )
    unused = {
        "MODEL.PRETRAINED": model.PRETRAINED,
        "--pretrained": options.pretrained,
        "--val-split": options.val_split,
    }
    refuse(unused, f"in {command}, which starts from drawn weights and keeps no best")


def with_amp(options: RunOptions, config: Config) -> RunOptions:
    """The options with what `TRAIN.USE_AMP` means: fp16 on a GPU, as the authors have it; on the CPU nothing."""
    wanted = config.TRAIN.USE_AMP and options.mixed_precision == "no" and has_gpu()
    return dataclasses.replace(options, mixed_precision="fp16") if wanted else options


def report(config: Config, session: Session) -> None:
    """Say that half precision was asked for and is not had."""
    amp, precision = config.TRAIN.USE_AMP, session.accelerator.mixed_precision
    if amp and precision == "no" and session.accelerator.is_main_process:
        log.warning("TRAIN.USE_AMP: the CPU computes in float32")
