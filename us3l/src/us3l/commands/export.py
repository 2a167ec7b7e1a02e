"""`us3l export`: the sub-network of one width as an ordinary net, with the batch-norm statistics of that width.

A net for any program: `subnetwork.pt2` (torch alone), `subnetwork.safetensors` with `subnetwork.json` (timm's keys and
arguments), or `packed.safetensors`. Of `ssl` and `calibrate` it is the backbone, of `linear` and `slimmable` the
classifier. Statistics that the file has not are re-estimated, on training pictures under the views of pretraining.
"""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from lowbit.config.keys.root import with_options
from lowbit.cost import cost
from lowbit.data.views import view_recipes
from lowbit.errors import InputError
from lowbit.evaluate.batchnorm import reestimate_
from lowbit.evaluate.sweep_command import side_of_checkpoint
from lowbit.export.packed import save_packed
from lowbit.export.plain import save_plain
from lowbit.models.create import picture_settings
from lowbit.models.pretrained_cfg import ENTRY, Cfg, pretrained_cfg
from lowbit.options import RunOptions
from lowbit.slim.conversion import slims_inputs
from lowbit.slim.layers import set_width_
from lowbit.slim.widths import show_width
from lowbit.train.configured import dataset_of, refuse
from lowbit.train.process import on_main
from lowbit.train.session import Session
from us3l.commands import FILES
from us3l.config import Config
from us3l.evaluation import CALIBRATION, Pretrained, fixed_pictures, open_pretrained
from us3l.options import ExportOptions

NAME, PACKED = "subnetwork", "packed.safetensors"


def export(options: RunOptions, own: ExportOptions) -> Path | None:
    """Write the files; the one that `lowbit.load` reads."""
    if options.output is None:
        raise InputError("--output is missing: name the folder that the net is written to")
    refuse({"--pretrained": options.pretrained}, "in export, whose weights are those of the checkpoint")
    found = open_pretrained(own.checkpoint, own.arch, classifier=True)
    width = own.width or found.width or found.trained[0][-1]
    found.check_width(width, "--width")
    if slims_inputs(found.model):
        raise InputError(
            f"{found.net.name} slims the inputs of its layers alone, so it has no ordinary sub-network to export"
        )
    lacks, config, cfg = not found.has_statistics(width), found.config or Config(), found.shown
    if lacks:
        config = with_options(config, own.dataset, {CALIBRATION: own.calibration}, own.checkpoint)
    with Session("us3l", options, dataset_of(config.TRAIN), [own.checkpoint], resumes=False, files=FILES) as session:
        net, facts = session.place(set_width_(found.model, width)), {"width": width, "statistics": "of the file"}
        if lacks:
            train = session.pictures("train", labels=False)
            side = side_of_checkpoint(found.size[1], found.states_size, train)
            views, shown = view_recipes(config.TRAIN.DATASET, train, side)
            cfg, fixed = (
                cfg or pretrained_cfg(shown, (3, side, side)),
                fixed_pictures(config.MODEL.OFA, train, session, net),
            )
            facts["statistics"] = f"re-estimated on {len(fixed)} training pictures"
        cfg = cfg or picture_settings(net)
        counted = cost(net, tuple(cfg["input_size"]))
        facts |= {"macs": counted.macs, "parameters": counted.parameters}
        said = {**facts, "width": show_width(width)}
        if options.dry_run:
            session.say_facts({"net": found.net.name, **said})
            return None
        with session.open_folder("export", {**asdict(own), "net": found.net.name}, said) as folder:
            assert folder is not None
            if lacks:
                reestimate_(net, fixed.trained(views), session.accelerator)
            lines: list[str] = []
            write = partial(
                write_packed if own.kind == "packed" else write_plain, folder.path, net.cpu(), found, cfg, facts
            )
            on_main(session.accelerator, lambda: lines.extend(write()))
            session.write_result(folder, facts)
        session.say(*lines)
    return options.output / (PACKED if own.kind == "packed" else f"{NAME}.safetensors")


def write_plain(folder: Path, net: nn.Module, found: Pretrained, cfg: Cfg, facts: Mapping[str, Any]) -> list[str]:
    """The three files; lines that say how the net is built again."""
    width = facts["width"] if isinstance(facts["width"], float) else 1.0  # timm has no widths by layer
    said = save_plain(net, folder / NAME, found.net.name, found.classes, cfg, width, facts)
    path = folder / f"{NAME}.safetensors"
    arguments = {**said["model_args"], "num_classes": found.classes, "checkpoint_path": str(path)}
    shown = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    built = (
        f"timm.create_model({said['architecture']!r}, {shown})"
        if said["architecture"]
        else "timm has no net of these sizes"
    )
    lines = (path, path.with_suffix(".pt2"), path.with_suffix(".json"))
    return [*(f"{line} {line.stat().st_size:,} bytes" for line in lines), f"{built}; lowbit.load({str(path)!r})"]


def write_packed(folder: Path, net: nn.Module, found: Pretrained, cfg: Cfg, facts: Mapping[str, Any]) -> list[str]:
    """The packed file, and its bytes."""
    recipe = {"arch": found.net.name, "args": {"num_classes": found.classes}, "method": "us3l", ENTRY: cfg, **facts}
    return [f"{folder / PACKED} {save_packed(net, folder / PACKED, recipe):,} bytes"]
