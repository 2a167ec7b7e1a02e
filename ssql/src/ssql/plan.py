"""What can be decided, or refused, before pretraining touches a device: choices, checks, pictures per step."""

import logging
from dataclasses import dataclass

from lowbit.errors import InputError
from lowbit.models.create import check_arch
from lowbit.options import RunOptions
from lowbit.train.session import Session
from ssql.config import Config

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Choices:
    """What the command line says beside the config and the shared options; see `ssql ssl --help`."""

    config_name: str
    keep_global_batch: bool = False
    probe_every: int = 10
    authors_layout: bool = False


@dataclass(frozen=True)
class BatchPlan:
    """Pictures per step: `per_process` in one forward (before --accumulate), `total` per optimizer step, `parts`."""

    per_process: int
    total: int
    parts: int


def check(options: RunOptions, config: Config) -> None:
    """What can be refused before any data is read.

    Raises:
        InputError: a key that has to be set and is not, or an option that pretraining does not have.
    """
    for key, value in (("MODEL.ARCH", config.MODEL.ARCH), ("TRAIN.DATASET", config.TRAIN.DATASET)):
        if not value:
            raise InputError(f"{key} is empty: name it in the config, or as {key}=NAME after the command")
    check_arch(config.MODEL.ARCH)
    if config.SSL.TYPE is None:
        raise InputError("SSL.TYPE is missing: name a method, such as SSL.TYPE=SSQL_SimSiam")
    if config.TRAIN.EPOCHS < 1:
        raise InputError(f"TRAIN.EPOCHS={config.TRAIN.EPOCHS}: give 1 or more")
    unused = {
        "MODEL.PRETRAINED": config.MODEL.PRETRAINED,
        "--pretrained": options.pretrained,
        "--val-split": options.val_split,
    }
    for flag, given in unused.items():
        if given:
            raise InputError(
                f"{flag} has no meaning in ssl, which starts from drawn weights and keeps no best: leave it out"
            )


def batch_plan(options: RunOptions, config: Config, how: Choices, session: Session) -> BatchPlan:
    """How many pictures a step sees; another number than the learning rate was chosen for is told.

    Raises:
        InputError: --keep-global-batch cannot reach `TRAIN.GLOBAL_BATCH`, parts of a batch would change the loss, or a
            batch does not fit MoCo's queue.
    """
    per_process, world = config.TRAIN.BATCH_SIZE, session.accelerator.num_processes
    kind, setting, wanted = str(config.SSL.TYPE), config.SSL.SETTING, config.TRAIN.GLOBAL_BATCH
    total, said = per_process * world, f"TRAIN.BATCH_SIZE={per_process} on {world} process(es)"
    parts = 1
    if wanted is not None and wanted != total:
        if not how.keep_global_batch:
            if session.accelerator.is_main_process:
                log.warning(
                    "%s makes batches of %d pictures, and the learning rate was chosen for TRAIN.GLOBAL_BATCH=%d; it "
                    "stays as it is: --keep-global-batch accumulates gradients", said, total, wanted,
                )  # fmt: skip
        elif wanted % total:
            raise InputError(
                f"--keep-global-batch: {said} makes {total} pictures, of which TRAIN.GLOBAL_BATCH={wanted} is no "
                "multiple: change TRAIN.BATCH_SIZE"
            )
        else:
            parts, total = wanted // total, wanted
    plan = BatchPlan(per_process, total, parts * options.accumulate)
    if plan.parts > 1 and kind.endswith("SimCLR") and setting.NEGATIVES == "gathered":
        raise InputError("SSL.SETTING.NEGATIVES='gathered' needs the whole batch at once: no --accumulate, or 'local'")
    if plan.parts > 1 and kind.endswith("MoCo") and world > 1:
        raise InputError("MoCo's key shuffle over processes needs the whole batch at once: leave out what accumulates")
    if kind.endswith("MoCo") and plan.total > setting.MOCO_K:
        raise InputError(
            f"a queue of SSL.SETTING.MOCO_K={setting.MOCO_K} keys is shorter than a batch of {plan.total} pictures"
        )
    return plan
