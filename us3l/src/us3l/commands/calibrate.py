"""`us3l calibrate`: the online encoder with batch-norm statistics of one width, or of several, a file for each.

`checkpoint_width_{w}.pth.tar` (`checkpoint_width_by_layer.pth.tar`) holds the backbone at full size, the statistics of
the width in the channels that run there, and the width. Other widths of an S-Net keep theirs. Statistics are a
cumulative average over MODEL.OFA.CALIBRATION_PICTURES training pictures under the views of pretraining, of pictures in
files with crops of 0.08 to 1 of the area, as the authors'; widths that round to the same channels share them.

Deviations from the authors' program: it takes ImageNet at 224 pixels alone, 501 batches at momentum 0.1, leaves the
first layer of the projector in the file, and does not record the width.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from lowbit.checkpoint.write import write_checkpoint
from lowbit.config.tree import dump_config, with_values
from lowbit.cost import cost
from lowbit.data.geometry import RandomResizedCrop
from lowbit.data.pictures import MemoryPictures
from lowbit.data.views import side_of, view_recipes
from lowbit.evaluate.table import Row
from lowbit.models.pretrained_cfg import pretrained_cfg
from lowbit.options import OptimOptions, RunOptions
from lowbit.slim.layers import at_width
from lowbit.slim.statistics import WidthStatistics
from lowbit.slim.widths import Width, show_width, widths_in
from lowbit.train.bn_statistics import batchnorms
from lowbit.train.configured import dataset_of, described, refuse
from lowbit.train.process import on_main
from lowbit.train.session import Session
from lowbit.train.state import on_cpu
from us3l import load
from us3l.commands import FILES
from us3l.config import Config
from us3l.evaluation import fixed_pictures, open_pretrained
from us3l.options import CalibrateOptions


def calibrate(options: RunOptions, config: Config, name: str, own: CalibrateOptions) -> list[Path] | None:
    """Check, re-estimate, write; the files."""
    refuse({"--pretrained": options.pretrained}, "in calibrate, whose weights are those of MODEL.PRETRAINED")
    config.check_stated("MODEL.PRETRAINED", "TRAIN.DATASET")
    path = Path(config.MODEL.PRETRAINED)
    with Session("us3l", options, dataset_of(config.TRAIN), [path], resumes=False, files=FILES) as session:
        train = session.pictures("train", labels=False)
        side = side_of(train, config.MODEL.side)
        size = (3, side, side)
        backbone = open_pretrained(path, config.MODEL.ARCH or None, size)
        widths: tuple[Width, ...] = own.widths or (backbone.chosen(config.MODEL.OFA),)
        net, rows = session.place(backbone.model), list[Row]()
        for width in widths:
            backbone.check_width(width, "--widths (MODEL.OFA.WIDTH_MULT, WIDTH_BY_LAYER)")
            with at_width(net, width):
                counted = cost(net, size)
            rows.append({"variant": show_width(width), "macs": counted.macs, "parameters": counted.parameters})
        views, shown = view_recipes(config.TRAIN.DATASET, train, side)
        if not isinstance(train, MemoryPictures):
            views = replace(views, geometry=RandomResizedCrop(side))
        if backbone.net.kind == "universal":
            for norm in batchnorms(net):
                norm.reset_running_stats()
        fixed = fixed_pictures(config.MODEL.OFA, train, session, net)
        facts = {"net": backbone.net.name, "calibration": len(fixed), "widths": ", ".join(map(show_width, widths))}
        if options.dry_run:
            session.say_facts(facts)
            return None
        record, found = described(name, own, OptimOptions(), dump_config(config)), list[Path]()
        said = backbone.config or with_values(config, {"MODEL.ARCH": backbone.net.arch})  # others' files have none
        with session.open_folder("calibrate", record, facts) as folder:
            assert folder is not None  # --output has a default
            statistics = WidthStatistics(net, partial(fixed.trained, views), session.accelerator)
            for width in widths:
                with statistics.at(width):
                    which = "by_layer" if isinstance(width, Mapping) else show_width(width)
                    found.append(folder.path / f"checkpoint_width_{which}.pth.tar")
                    trained = backbone.widths or widths_in(width)
                    header = load.header(said, pretrained_cfg(shown, size), 0, width, trained)
                    state = {load.ENCODER + key: value for key, value in on_cpu(net.state_dict()).items()}
                    write = partial(write_checkpoint, found[-1], {**header, "state_dict": state}, keep_previous=False)
                    on_main(session.accelerator, write)
            session.write_result(folder, {**facts, "rows": rows})
        session.say(*map(str, found))
    return found
