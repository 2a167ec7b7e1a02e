"""`bsq export`: the codes of a net in bits at their own widths, in one file, with fixed ranges of activations."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

from bsq.commands import opening
from bsq.network import binary
from bsq.options import NetOptions
from lowbit.errors import InputError
from lowbit.evaluate.ranges import RangesToFix
from lowbit.export.packed import save_packed
from lowbit.models.pretrained_cfg import ENTRY, pretrained_cfg
from lowbit.options import DATASETS, RunOptions
from lowbit.train.process import on_main

log = logging.getLogger(__name__)


def export(options: RunOptions, net: NetOptions, keep_batch_ranges: bool = False) -> Path | None:
    """`bsq export`: the codes at their own bits, what stays float, and how to rebuild the net. None after a dry run.

    Raises:
        InputError: no `--output`, not a checkpoint of bits, a folder that holds a run, or no pictures to set ranges.
        Stopped: a stop signal came.
    """
    if options.output is None:
        raise InputError("--output is missing: name the folder that packed.safetensors is written to")
    model, saved, recipe = opening.read_bits(net)
    net = replace(net, dataset=net.dataset or saved.weights.said.get("dataset", "cifar10"))
    if net.dataset not in DATASETS:
        raise InputError(f"{net.model} says that its pictures are {net.dataset!r:.40}: name the data (-d)")
    with opening.open_session(options, net) as session:
        shown = opening.recipes_of(net, saved.pictures, model)[1]
        ranges = RangesToFix(session, model, shown, keep=keep_batch_ranges)
        if ranges.names:
            recipe.setdefault(ENTRY, pretrained_cfg(shown, recipe["input_size"], ranges.classes))
        if options.dry_run:
            session.say_facts({"net": recipe["arch"], "dataset": net.dataset, "ranges to set": len(ranges.names)})
            return None
        if not binary(model):
            log.warning("%s is of a bit training under way: its codes are rounded, as in evaluation", net.model)
        with session.open_folder("export", asdict(net), {"ranges set": len(ranges.names)}) as folder:
            if ranges.names:
                session.write_result(folder, ranges.fix_())
            path = options.output / "packed.safetensors"
            on_main(session.accelerator, lambda: save_packed(model.cpu(), path, recipe))
        session.say(f"{path} {path.stat().st_size:,} bytes")
    return path
