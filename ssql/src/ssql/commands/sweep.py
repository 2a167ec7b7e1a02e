"""`ssql sweep`: one checkpoint at many bit-widths, one table.

Each width is evaluated by weighted k-NN and by a linear probe on the features that the net gives there: one probe,
trained on the features of `fp` (float, or with QUANT.FP=authors with the stem at 8/8) and carried along, or one trained
at each width (the protocol of the paper). All figures come a second time with batch-norm statistics re-estimated at the
width, from the pictures of the calibration under the views of pretraining: that is what a checkpoint of
`QUANT.BN=float` needs, whose statistics have seen float passes alone.

The net's ranges are found for each width, on `QUANT.CALIBRATION.PICTURES` training pictures as evaluation shows
them. A float checkpoint gets the pins that SSQL has for its net.
"""

import dataclasses
import time
from functools import partial
from typing import get_args

from lowbit.config.keys.train import Dataset
from lowbit.config.tree import dump_config, with_values
from lowbit.data.pictures import MemoryPictures, Pictures
from lowbit.errors import InputError
from lowbit.evaluate.probe import ProbeOptions
from lowbit.evaluate.sweep import SweepOptions, Variant, plan_sweep
from lowbit.evaluate.sweep import sweep as sweep_variants
from lowbit.evaluate.table import Row, table, write_sweep
from lowbit.options import RunOptions
from lowbit.train.configured import dataset_of, refuse
from lowbit.train.process import on_main
from lowbit.train.session import Session
from ssql.bitwidths import FLOAT
from ssql.commands import FILES
from ssql.config import Config
from ssql.evaluation import Pretrained, QuantizedBackbone, check_statistics, open_pretrained
from ssql.options import BitSweepOptions
from ssql.pictures import channels_of, views_of

NAMES = get_args(Dataset)


def config_of(own: BitSweepOptions, backbone: Pretrained) -> Config:
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
    backbone = open_pretrained(own.checkpoint, own.arch)
    config, probe = config_of(own, backbone), ProbeOptions.of_epochs(own.probe_lr, own.probe_epochs)
    with Session("ssql", options, dataset_of(config.TRAIN), [own.checkpoint], resumes=False, files=FILES) as session:
        train, test = session.pictures("train"), session.pictures("test")
        side = side_of_sweep(backbone, train)
        channels = backbone.normalization or channels_of(config)
        views, shown = (dataclasses.replace(recipe, channels=channels) for recipe in views_of(config, train, side))
        backbone = dataclasses.replace(backbone, size=(3, side, side))
        quantized = QuantizedBackbone(session, backbone, config.QUANT, train, shown)
        check_statistics(quantized.net, config.QUANT.CALIBRATION, train)
        reference, *variants = (Variant(bits.name, partial(quantized.at, bits)) for bits in (FLOAT, *own.bits))
        calibrated = len(quantized.fixed)
        if options.dry_run:
            sets, entering = (train, test), calibrated
            plan = plan_sweep(quantized.net, variants, sets, shown, session, reference=reference, entering=entering)
            session.say_facts({"net": backbone.arch, **plan, "pictures of the calibration": calibrated})
            return None
        described = {**dataclasses.asdict(own), "arch": backbone.arch, "config": dump_config(config)}
        with session.open_folder("sweep", described, {"pictures": len(train), "test": len(test)}) as folder:
            rows = sweep_variants(
                quantized.net,
                variants,
                session.eval_loader(train, shown),
                session.eval_loader(test, shown),
                session.accelerator,
                SweepOptions(probe=probe, retrain=own.probe_per_bits, seed=options.seed),
                reference=reference,
                bn_batches=partial(quantized.fixed.trained, views),
            )
            session.say(*table(rows))
            if folder is not None:
                label = config.SSL.TYPE or backbone.arch
                on_main(session.accelerator, partial(write_sweep, rows, folder.path, label))
            facts = {"arch": backbone.arch, "dataset": config.TRAIN.DATASET, "calibration": calibrated}
            facts |= {"probe": dataclasses.asdict(probe), "seconds": time.perf_counter() - start}
            session.write_result(folder, {"rows": rows, **facts})
    return rows


def side_of_sweep(backbone: Pretrained, pictures: Pictures) -> int:
    """What the checkpoint says; else small pictures as they are, large ones as timm shows them to the net."""
    if backbone.config is None and isinstance(pictures, MemoryPictures):
        return pictures.size[0]
    return backbone.size[1]
