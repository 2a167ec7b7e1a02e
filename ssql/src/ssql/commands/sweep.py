"""`ssql sweep`: one checkpoint at many bit-widths, one table.

Each width is evaluated by weighted k-NN and by a linear probe on the features that the net gives there: one probe,
trained on the features of `fp` (float, or with QUANT.FP=authors with the stem at 8/8) and carried along, or one trained
at each width (the protocol of the paper). All figures come a second time with batch-norm statistics re-estimated at the
width, from the pictures of the calibration under the views of pretraining: that is what a checkpoint of
`QUANT.BN=float` needs, whose statistics have seen float passes alone.

The net's ranges are found anew for each width, on `QUANT.CALIBRATION.PICTURES` training pictures as evaluation shows
them. A float checkpoint gets the pins that SSQL has for its net.
"""

import dataclasses
import time
from functools import partial
from typing import get_args

import torch

from lowbit.config.keys.train import Dataset
from lowbit.config.tree import dump_config, with_values
from lowbit.data.fixed import BATCH
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.errors import InputError
from lowbit.evaluate.knn import K
from lowbit.evaluate.probe import ProbeOptions
from lowbit.evaluate.sweep import SweepOptions, Variant, time_variant
from lowbit.evaluate.sweep import sweep as sweep_variants
from lowbit.evaluate.table import Row, table, write_sweep
from lowbit.options import RunOptions
from lowbit.train.process import on_main
from ssql.bitwidths import FLOAT
from ssql.commands.common import open_session, refuse
from ssql.config import Config
from ssql.evaluation import Backbone, QuantizedBackbone, check_statistics, open_backbone
from ssql.options import BitSweepOptions
from ssql.pictures import channels_of, views_of

NAMES = get_args(Dataset)
TRIAL_PICTURES = 2 * BATCH  # timed by a dry run


def config_of(own: BitSweepOptions, backbone: Backbone) -> Config:
    """The checkpoint's config, or the default one, with what the command line says.

    Raises:
        InputError: nobody says which dataset, or an unknown one.
    """
    found = backbone.config or Config()
    if own.dataset not in (None, *NAMES):
        raise InputError(f"--dataset {own.dataset}: give one of {', '.join(NAMES)}")
    if not (own.dataset or found.TRAIN.DATASET):
        raise InputError(f"{own.checkpoint} does not say what it was trained on: give --dataset")
    said = {"QUANT.CALIBRATION.PICTURES": own.calibration, "QUANT.FP": own.fp, "TRAIN.DATASET": own.dataset}
    return with_values(found, {key: value for key, value in said.items() if value is not None})


def sweep(options: RunOptions, own: BitSweepOptions) -> list[Row] | None:
    """Evaluate a checkpoint, say the table, write it where `options.output` is given. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    start = time.perf_counter()
    refuse({"--pretrained": options.pretrained}, "in sweep, whose weights are those of the checkpoint")
    backbone = open_backbone(own.checkpoint, own.arch)
    config, probe = config_of(own, backbone), ProbeOptions.of_epochs(own.probe_lr, own.probe_epochs)
    with open_session(options, config, [own.checkpoint], resumes=False) as session:
        train, test = session.pictures("train"), session.pictures("test")
        side = side_of_sweep(backbone, train)
        channels = backbone.normalization or channels_of(config)
        views, shown = (dataclasses.replace(recipe, channels=channels) for recipe in views_of(config, train, side))
        backbone = dataclasses.replace(backbone, size=(3, side, side))
        quantized = QuantizedBackbone(session, backbone, config.QUANT, train, shown)
        check_statistics(quantized.net, config.QUANT.CALIBRATION, train)
        variants = {bits: Variant(bits.name, partial(quantized.at, bits)) for bits in (FLOAT, *own.bits)}
        if options.dry_run:
            say_plan(quantized, variants[own.bits[-1]], train, test, own, backbone)
            return None
        described = {**dataclasses.asdict(own), "arch": backbone.arch, "config": dump_config(config)}
        with session.open_folder("sweep", described, {"pictures": len(train), "test": len(test)}) as folder:
            rows = sweep_variants(
                quantized.net,
                [variants[bits] for bits in own.bits],
                quantized.loader(train),
                quantized.loader(test),
                session.accelerator,
                SweepOptions(probe=probe, retrain=own.probe_per_bits, k=min(K, len(train)), seed=options.seed),
                reference=variants[FLOAT],
                bn_batches=partial(quantized.fixed.trained, views),
            )
            session.say(*table(rows))
            if folder is not None:
                label = config.SSL.TYPE or backbone.arch
                on_main(session.accelerator, partial(write_sweep, rows, folder.path, label))
            facts = {"arch": backbone.arch, "dataset": config.TRAIN.DATASET, "calibration": len(quantized.fixed)}
            facts |= {"probe": dataclasses.asdict(probe), "seconds": time.perf_counter() - start}
            session.write_result(folder, {"rows": rows, **facts})
    return rows


def side_of_sweep(backbone: Backbone, pictures: Pictures) -> int:
    """What the checkpoint says; else small pictures as they are, large ones as timm shows them to the net."""
    if backbone.config is None and isinstance(pictures, MemoryPictures):
        return pictures.size[0]
    return backbone.size[1]


def say_plan(
    quantized: QuantizedBackbone,
    variant: Variant,
    train: Pictures,
    test: Pictures,
    own: BitSweepOptions,
    backbone: Backbone,
) -> None:
    """Time some forwards, and say what the whole would be; probes are not counted."""
    session, calibrated = quantized.session, len(quantized.fixed)
    some = train.subset(torch.arange(min(TRIAL_PICTURES, len(train))))
    seconds = time_variant(quantized.net, variant, quantized.loader(some), session.accelerator)
    passes = 2 * len({FLOAT, *own.bits})  # own statistics of batch norm, and re-estimated ones
    per_picture = seconds / (len(some) + calibrated)
    session.say_facts(
        {
            "net": backbone.arch,
            "variants": ", ".join(bits.name for bits in own.bits),
            "training pictures": len(train),
            "test pictures": len(test),
            "pictures of the calibration": calibrated,
            "estimated seconds without probes": per_picture * passes * (len(train) + len(test)),
        }
    )
