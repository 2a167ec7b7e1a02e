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
from functools import partial

from lowbit.config.keys.root import with_options
from lowbit.config.tree import dump_config
from lowbit.evaluate.probe import ProbeOptions
from lowbit.evaluate.sweep import SweepOptions, Variant
from lowbit.evaluate.sweep_command import run_sweep, side_of_checkpoint
from lowbit.evaluate.table import Row
from lowbit.options import RunOptions
from lowbit.train.configured import dataset_of, refuse
from lowbit.train.session import Session
from ssql.bitwidths import FLOAT
from ssql.commands import FILES
from ssql.config import Config
from ssql.evaluation import Pretrained, QuantizedBackbone, check_statistics, open_pretrained
from ssql.options import BitSweepOptions
from ssql.pictures import channels_of, views_of


def config_of(own: BitSweepOptions, backbone: Pretrained) -> Config:
    """The checkpoint's config, or the default one, with what the command line says.

    Raises:
        InputError: nobody says which dataset, or an unknown one.
    """
    said = {"QUANT.CALIBRATION.PICTURES": own.calibration, "QUANT.FP": own.fp}
    return with_options(backbone.config or Config(), own.dataset, said, own.checkpoint)


def sweep(options: RunOptions, own: BitSweepOptions) -> list[Row] | None:
    """Evaluate a checkpoint, say the table, write it where `options.output` is given. None after a dry run.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    refuse({"--pretrained": options.pretrained}, "in sweep, whose weights are those of the checkpoint")
    backbone = open_pretrained(own.checkpoint, own.arch)
    config, probe = config_of(own, backbone), ProbeOptions.of_epochs(own.probe_lr, own.probe_epochs)
    with Session("ssql", options, dataset_of(config.TRAIN), [own.checkpoint], resumes=False, files=FILES) as session:
        train, test = session.pictures("train"), session.pictures("test")
        side = side_of_checkpoint(backbone.size[1], backbone.config is not None, train)
        channels = backbone.normalization or channels_of(config)
        views, shown = (dataclasses.replace(recipe, channels=channels) for recipe in views_of(config, train, side))
        backbone = dataclasses.replace(backbone, size=(3, side, side))
        quantized = QuantizedBackbone(session, backbone, config.QUANT, train, shown)
        check_statistics(quantized.net, config.QUANT.CALIBRATION, train)
        reference, *variants = (Variant(bits.name, partial(quantized.at, bits)) for bits in (FLOAT, *own.bits))
        return run_sweep(
            session, quantized.net, variants, (train, test), shown,
            SweepOptions(probe=probe, retrain=own.probe_per_bits, seed=options.seed),
            reference=reference, bn_batches=partial(quantized.fixed.trained, views),
            calibrated=len(quantized.fixed), entering=len(quantized.fixed),
            described={**dataclasses.asdict(own), "arch": backbone.arch, "config": dump_config(config)},
            facts={"arch": backbone.arch, "dataset": config.TRAIN.DATASET}, label=config.SSL.TYPE or backbone.arch,
        )  # fmt: skip
