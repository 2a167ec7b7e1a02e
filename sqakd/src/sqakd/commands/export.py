"""`sqakd export`: a student's codes at their own bits, its scales and what is float, in one file for `lowbit.load`."""

from dataclasses import asdict
from pathlib import Path

from lowbit.errors import InputError
from lowbit.export.packed import save_packed
from lowbit.models.create import picture_settings
from lowbit.models.pretrained_cfg import ENTRY
from lowbit.options import RunOptions
from lowbit.train import console
from lowbit.train.folder import RunFolder
from sqakd.commands import FILES
from sqakd.load import open_net


def export(options: RunOptions, file: Path) -> Path:
    """Write `packed.safetensors` into `--output`.

    Raises:
        InputError: before anything is written.
    """
    if options.output is None:
        raise InputError("--output is missing: name the folder that packed.safetensors is written to")
    RunFolder.check(options.output, overwrite=options.overwrite, inputs=(file,), files=FILES)
    net, path = open_net(file), options.output / "packed.safetensors"
    said = {"method": "sqakd", ENTRY: net.said.get(ENTRY) or picture_settings(net.model)}
    recipe = {"arch": net.arch, "args": {"num_classes": net.model.num_classes}, **said}
    config = {"command": "export", **asdict(options), "file": file}
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=FILES):
        save_packed(net.model, path, recipe)
    console.say(f"{path} {path.stat().st_size:,} bytes")
    return path
