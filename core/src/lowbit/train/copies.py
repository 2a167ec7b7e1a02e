"""Copies of a run's weights by epoch, beside the one checkpoint that it goes on from."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from accelerate import Accelerator

from lowbit.checkpoint.write import write_checkpoint
from lowbit.train.epochs import Due
from lowbit.train.folder import RunFolder
from lowbit.train.process import on_main
from lowbit.train.protocol import Clock, Objective
from lowbit.train.run import Probe
from lowbit.train.state import on_cpu, rename, saved_state


def keep_copies(
    folder: RunFolder, accelerator: Accelerator, due: Due, header: Mapping[str, Any], prefixes: Mapping[str, str]
) -> Probe:
    """For `Run.probes`: `checkpoint_{epoch:04d}.pth.tar`, the weights without optimizer; no figures.

    Args:
        folder: of the run.
        accelerator: of the run.
        due: after which epochs.
        header: entries of every checkpoint, as in `Run`.
        prefixes: of its keys, as in `Run`.
    """

    def write(clock: Clock, objective: Objective) -> None:
        state = rename(on_cpu(saved_state(objective)), prefixes)
        content = {**header, "epoch": clock.epoch + 1, "step": clock.done, "state_dict": state}
        write_checkpoint(folder.path / f"checkpoint_{clock.epoch:04d}.pth.tar", content, keep_previous=False)

    def probe(clock: Clock, objective: Objective) -> Mapping[str, float]:
        if due(clock):
            on_main(accelerator, partial(write, clock, objective))
        return {}

    return probe
