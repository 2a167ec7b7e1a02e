"""A sweep as a command: on which pictures, the plan of a dry run, the table, its files and `result.json`."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

from torch import nn

from lowbit.data.batch import Batch
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.data.recipe import Recipe
from lowbit.evaluate.sweep import SweepOptions, Variant, plan_sweep, sweep
from lowbit.evaluate.table import Row, table, write_sweep
from lowbit.train.process import on_main
from lowbit.train.session import Session


def side_of_checkpoint(side: int, stated: bool, pictures: Pictures) -> int:
    """Height and width of what a net is shown, in pixels.

    Args:
        side: the checkpoint's, or timm's for the net.
        stated: the checkpoint says it; if not, small pictures are shown as they are.
        pictures: of either set.
    """
    return pictures.size[0] if isinstance(pictures, MemoryPictures) and not stated else side


def run_sweep(
    session: Session, net: nn.Module, variants: Sequence[Variant], pictures: tuple[Pictures, Pictures], shown: Recipe,
    options: SweepOptions, *, reference: Variant, bn_batches: Callable[[], Iterable[Batch]], calibrated: int,
    entering: int = 0, described: Mapping[str, Any], facts: Mapping[str, Any], label: str,
) -> list[Row] | None:  # fmt: skip
    """Evaluate a net, say the table, write it where the session has a folder. None after a dry run.

    Args:
        session: of the command.
        net: and the further arguments of `lowbit.evaluate.sweep.sweep`.
        variants: likewise.
        pictures: of training, of the test.
        shown: how evaluation prepares a picture.
        options: what is evaluated.
        reference: likewise.
        bn_batches: likewise.
        calibrated: pictures that statistics, and ranges, are found on.
        entering: of these, how many a variant looks at when it is entered.
        described: entries of `config.json`.
        facts: entries of `result.json`, `arch` among them.
        label: the checkpoint's name in the picture.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    start, (train, test) = time.perf_counter(), pictures
    if session.options.dry_run:
        looks = 1 + options.own_statistics
        plan = plan_sweep(net, variants, pictures, shown, session, reference=reference, entering=entering, looks=looks)
        session.say_facts({"net": facts["arch"], **plan, "pictures of the calibration": calibrated})
        return None
    with session.open_folder("sweep", described, {"pictures": len(train), "test": len(test)}) as folder:
        loaders = session.eval_loader(train, shown), session.eval_loader(test, shown)
        rows = sweep(net, variants, *loaders, session.accelerator, options, reference=reference, bn_batches=bn_batches)
        session.say(*table(rows))
        if folder is not None:
            on_main(session.accelerator, partial(write_sweep, rows, folder.path, label))
        said = {**facts, "calibration": calibrated, "probe": asdict(options.probe)}
        session.write_result(folder, {"rows": rows, **said, "seconds": time.perf_counter() - start})
    return rows
