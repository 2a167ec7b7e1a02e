"""`bsq export`: the codes of a net in bits at their own widths, in one file."""

import logging
import sys
from dataclasses import asdict
from pathlib import Path

from bsq.commands import opening
from bsq.network import binary
from bsq.options import NetOptions
from lowbit.errors import InputError
from lowbit.export.packed import save_packed
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder

log = logging.getLogger(__name__)


def export(options: RunOptions, net: NetOptions) -> Path:
    """`bsq export`: the codes at their own bits, what stays float, and how to rebuild the net, in one file.

    Raises:
        InputError: no `--output`, not a checkpoint of bits, or a folder that holds a run.
    """
    if options.output is None:
        raise InputError("--output is missing: name the folder that packed.safetensors is written to")
    RunFolder.check(options.output, overwrite=options.overwrite, inputs=(net.model,), files=opening.FILES)
    model, recipe = opening.read_bits(net)
    if not binary(model):
        log.warning("%s is of a bit training under way: its codes are rounded, as in evaluation", net.model)
    config = {"command": "export", **asdict(options), **asdict(net)}
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=opening.FILES) as folder:
        path = folder.path / "packed.safetensors"
        save_packed(model, path, recipe)
    sys.stdout.write(f"{path} {path.stat().st_size:,} bytes\n")
    return path
