"""`sqakd sweep`: one student at several bits, one table: k-NN and a probe at each, batch norm re-estimated.

EWGS's and STE's intervals, PACT's clipping value and DoReFa's rule hold at any bits; LSQ's step belongs to one.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lowbit.data.fixed import FixedPictures
from lowbit.errors import InputError
from lowbit.evaluate.probe import ProbeOptions
from lowbit.evaluate.sweep import SweepOptions, Variant
from lowbit.evaluate.sweep_command import run_sweep
from lowbit.evaluate.table import Row
from lowbit.options import RunOptions
from lowbit.quant.learned_layers import at_bits
from sqakd.commands.training import open_session
from sqakd.load import open_net
from sqakd.options import TrainOptions
from sqakd.pictures import recipes, shown_side

OTHERS = ("ste", "ewgs", "pact", "dorefa")  # quantizers that serve other bits than those they were trained at


def sweep(options: RunOptions, file: Path, dataset: str, bits: Sequence[int], epochs: int) -> list[Row] | None:
    """Evaluate, say the table, write it where `--output` is given. None after a dry run.

    Args:
        options: shared.
        file: the checkpoint.
        dataset: a name of `lowbit.options.DATASETS`.
        bits: of weights and inputs.
        epochs: of the probe.

    Raises:
        InputError: before anything is written.
        Stopped: a stop signal came.
    """
    net = open_net(file)
    kinds = {config.quantizer for pair in net.quantizers.values() for config in pair if config.bits}
    if not kinds or not kinds.issubset(OTHERS):
        said = ", ".join(kinds) or "no quantizer"
        raise InputError(f"{file}: a net under {said} has one number of bits: name one of {', '.join(OTHERS)}")
    for number in bits:
        with at_bits(net.model, number):
            pass
    own = TrainOptions(command="sweep", arch=net.arch, dataset=dataset)
    with open_session(options, own, file) as session:
        train, test = session.pictures("train"), session.pictures("test")
        side = int((net.said.get("input_size") or (3, shown_side(own, train)))[1])
        views, shown = recipes(own, dataset, train, side)
        fixed = FixedPictures(train, own.calibration, options.seed, session.loader_options())
        model = session.place(net.model)
        variants = [Variant(f"{b} bits", partial(at_bits, model, b)) for b in bits]
        return run_sweep(
            session, model, variants, (train, test), shown,
            SweepOptions(probe=ProbeOptions.of_epochs(1.0, epochs), seed=options.seed), reference=variants[0],
            bn_batches=partial(fixed.trained, views), calibrated=len(fixed), label=net.arch,
            described={"file": file, "dataset": dataset, "bits": list(bits)}, facts={"arch": net.arch},
        )  # fmt: skip
