"""`s2bnn export`: a net in one file that `lowbit.load` reads, and that says what of it is binary.

`packed`: binary weights at one bit each and a scale for each output channel, exactly the weights that are computed
with. `float`: the weights that training goes on from, with the classifier where the file has one. `backbone`: the same
without it, under timm's keys. Of `main_moco` it is always the backbone.
"""

from dataclasses import asdict
from pathlib import Path

from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone, save_network
from lowbit.export.packed import save_packed
from lowbit.models.create import picture_settings
from lowbit.models.pretrained_cfg import ENTRY, without_head
from lowbit.options import RunOptions
from lowbit.train import console
from lowbit.train.folder import RunFolder
from s2bnn.commands import FILES
from s2bnn.load import open_student
from s2bnn.options import FileOptions

NAMES = {"packed": "packed.safetensors", "float": "network.safetensors", "backbone": "backbone.safetensors"}


def export(options: RunOptions, own: FileOptions, form: str = "packed") -> Path:
    """Write the file of that form, of NAMES, into `--output`.

    Raises:
        InputError: before anything is written.
    """
    if options.output is None:
        raise InputError("--output is missing: name the folder that the net is written to")
    if own.file is None:
        raise InputError("the file to export is missing: name a checkpoint")
    RunFolder.check(options.output, overwrite=options.overwrite, inputs=(own.file,), files=FILES)
    net = open_student(own.file, own.student, own.step, 0 if form == "backbone" else own.classes)
    if form == "packed" and net.step == 0:
        raise InputError(f"{own.file}: a real-valued net (step 0) has no bits to pack: use --format float")
    classes = int(getattr(net.model, "num_classes", 0))
    cfg = net.said.get(ENTRY) or picture_settings(net.model)
    cfg = cfg if classes else without_head(cfg)
    path = options.output / NAMES[form]
    config = {"command": "export", **asdict(options), **asdict(own), "format": form, "step": net.step}
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=FILES):
        if form == "backbone":
            save_backbone(net.model, path, net.arch, cfg)
        elif form == "float":
            save_network(net.model, path, net.arch, classes, cfg)
        else:
            said = {"method": "s2bnn", "binarization": net.step, ENTRY: cfg}
            save_packed(net.model, path, {"arch": net.arch, "args": {"num_classes": classes}, **said})
    console.say(f"{path} {path.stat().st_size:,} bytes")
    return path
