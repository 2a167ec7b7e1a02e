"""Copies of a run's weights by epoch, beside the one checkpoint that it goes on from."""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

from accelerate import Accelerator

from lowbit.checkpoint.write import write_checkpoint
from lowbit.train.epochs import Due
from lowbit.train.folder import RunFolder
from lowbit.train.process import on_main
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.state import on_cpu, rename, saved_state

NAME = re.compile(r"checkpoint_(\d{4,})\.pth\.tar")


class Copies(NamedTuple):
    """Which copies there are.

    Attributes:
        due: after which epochs.
        keep: so many epochs' copies stay, of the newest; None: all.
        unfinished: an epoch that `--max-steps` ended has one, too.
    """

    due: Due
    keep: int | None = None
    unfinished: bool = False


def keep_copies(
    folder: RunFolder, accelerator: Accelerator, copies: Copies, header: Mapping[str, Any], prefixes: Mapping[str, str]
) -> Probe:
    """For `Run.probes`: `checkpoint_{epoch:04d}.pth.tar`, the weights without optimizer; no figures.

    Args:
        folder: of the run.
        accelerator: of the run.
        copies: which.
        header: entries of every checkpoint, as in `Run`.
        prefixes: of its keys, as in `Run`.
    """

    def write(clock: Clock, objective: Objective) -> None:
        state = rename(on_cpu(saved_state(objective)), prefixes)
        content = {**header, "epoch": clock.epoch + 1, "step": clock.done, "state_dict": state}
        write_checkpoint(folder.path / f"checkpoint_{clock.epoch:04d}.pth.tar", content, keep_previous=False)
        oldest = 0 if copies.keep is None else clock.epoch + 1 - copies.keep
        for path in list(folder.path.iterdir()):
            found = NAME.fullmatch(path.name)
            if found and int(found[1]) < oldest:
                path.unlink(missing_ok=True)

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if copies.keep != 0 and copies.due(clock):
            on_main(accelerator, partial(write, clock, objective))
        return {}

    return probe
