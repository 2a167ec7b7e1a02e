"""`us3l sweep`: one checkpoint at many widths, one table and one picture: accuracy against MACs.

Each width is evaluated by weighted k-NN and by a linear probe on the features that the sub-network gives: one probe,
trained on the features of the widest net and carried along (narrower features meet its first columns), or one trained
at each width (the paper's protocol). Batch-norm statistics are re-estimated at each width, on training pictures under
the views of pretraining; nets with a batch norm for each width are also evaluated with their own. Widths that round to
the same channels are one sub-network, evaluated once.
"""

from dataclasses import asdict
from functools import partial

from lowbit.config.keys.root import with_options
from lowbit.config.tree import dump_config
from lowbit.cost import cost
from lowbit.data.views import view_recipes
from lowbit.errors import InputError
from lowbit.evaluate.probe import ProbeOptions
from lowbit.evaluate.sweep import SweepOptions, Variant
from lowbit.evaluate.sweep_command import run_sweep, side_of_checkpoint
from lowbit.evaluate.table import Row
from lowbit.options import RunOptions
from lowbit.slim.layers import at_width
from lowbit.slim.statistics import channels_of
from lowbit.slim.subnetworks import best_under, subnetworks
from lowbit.slim.widths import show_width
from lowbit.train.configured import dataset_of, refuse
from lowbit.train.session import Session
from us3l.commands import FILES
from us3l.config import Config
from us3l.evaluation import CALIBRATION, QUARTERS, Pretrained, fixed_pictures, open_pretrained
from us3l.options import WidthSweepOptions


def sweep(options: RunOptions, own: WidthSweepOptions) -> list[Row] | None:
    """Evaluate a checkpoint, say the table, write it where `options.output` is given."""
    refuse({"--pretrained": options.pretrained}, "in sweep, whose weights are those of the checkpoint")
    backbone = open_pretrained(own.checkpoint, own.arch)
    config = with_options(backbone.config or Config(), own.dataset, {CALIBRATION: own.calibration}, own.checkpoint)
    probe = ProbeOptions.of_epochs(own.probe_lr, own.probe_epochs)
    with Session("us3l", options, dataset_of(config.TRAIN), [own.checkpoint], resumes=False, files=FILES) as session:
        train, test = session.pictures("train"), session.pictures("test")
        side = side_of_checkpoint(backbone.size[1], backbone.states_size, train)
        widths = widths_of(backbone, own, side)
        views, shown = view_recipes(config.TRAIN.DATASET, train, side)
        net = session.place(backbone.model)
        fixed = fixed_pictures(config.MODEL.OFA, train, session, net)
        reference, *variants = (variant_of(backbone, width, side) for width in (backbone.trained[0][-1], *widths))
        return run_sweep(
            session, net, variants, (train, test), shown,
            SweepOptions(
                probe=probe, retrain=own.probe_per_width, seed=options.seed,
                own_statistics=backbone.net.kind != "universal",
            ),
            reference=reference, bn_batches=partial(fixed.trained, views), calibrated=len(fixed),
            described={**asdict(own), "arch": backbone.net.name, "config": dump_config(config)},
            facts={"arch": backbone.net.name, "dataset": config.TRAIN.DATASET},
            label=config.SSL.TYPE or backbone.net.name,
        )  # fmt: skip


def widths_of(backbone: Pretrained, own: WidthSweepOptions, side: int) -> tuple[float, ...]:
    """What is evaluated; MACs are those of a picture of `side` pixels.

    Raises:
        InputError: two options, a width that was not trained, or no sub-network is small enough.
    """
    if bool(own.widths) + own.distinct + bool(own.best_under) > 1:
        raise InputError("--widths, --distinct and --best-under each say which widths: give one of them")
    if not (own.distinct or own.best_under):
        for width in own.widths:
            backbone.check_width(width, "--widths")
        return own.widths or backbone.listed
    widths, _ = backbone.trained
    ends = (widths[0] if backbone.widths else QUARTERS[0]), widths[-1]
    found = subnetworks(backbone.model, (3, side, side), *ends)
    if own.best_under:
        found = [best_under(int(own.best_under * 1e6), found)]
    return tuple(one.width for one in found)


def variant_of(backbone: Pretrained, width: float, side: int) -> Variant:
    """The sub-network of a width, and its MACs for a picture of `side` pixels."""
    net = backbone.model
    with at_width(net, width):
        macs, key = cost(net, (3, side, side)).macs, channels_of(net)
    return Variant(show_width(width), partial(at_width, net, width), macs, key)
