"""`ssql demo`: the digits; SimSiam and SSQL on it, trained alike, and each swept over bit-widths.

Both start from the same weights and see the same views in the same order for the same number of steps. A table, a
picture, `result.json`. The random weights of the start, swept alike, tell what training is worth: if one of the nets is
useless (`lowbit.demo`, by the float probe of the table), or has collapsed, the demo ends with 1.
"""

import time
from pathlib import Path
from typing import Any

from lowbit.checkpoint.write import CHECKPOINT
from lowbit.config.tree import dump_config
from lowbit.demo import NEEDED, open_demo, run_stage, save_random_backbone, verdict_without_labels, write_demo
from lowbit.evaluate.table import Row
from lowbit.options import RunOptions
from ssql.bitwidths import DEFAULT, FLOAT, Bits, parse_bits
from ssql.commands import FILES, pretrain, sweep
from ssql.config import read_config
from ssql.options import BitSweepOptions, PretrainOptions

CONFIG = "configs/base/digits.yaml"
KINDS = {"SimSiam": "SimSiam", "SSQL": "SSQL_SimSiam"}  # name in the table: SSL.TYPE
KEYS: tuple[str, ...] = ()  # beside the config's own
BITS = parse_bits(DEFAULT)
PROBE: dict[str, Any] = {"probe_lr": 1.0, "probe_epochs": 20}
SHOWN = ("probe_top1", "probe_top1_bn", "probe_top1_retrained", "knn_top1")  # of a row: in the table


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    start, made = time.perf_counter(), dump_config(read_config("ssl", CONFIG, KEYS))
    config = {"kinds": KINDS, "keys": KEYS, "probe": PROBE, "config": made}
    with open_demo(options, Path("runs/ssql-demo"), config, FILES) as (options, folder):
        trained = {name: _pretrained(name, folder.path, options) for name in KINDS}
        series = {name: _swept(folder.path / name / CHECKPOINT, BITS, options) for name in KINDS}
        untrained = folder.path / "random/backbone.safetensors"
        save_random_backbone(made["MODEL"]["ARCH"], options.seed, untrained)
        random = _swept(untrained, (FLOAT,), options)[0]
        verdicts = {name: verdict_without_labels(series[name][0], trained[name], random, NEEDED) for name in KINDS}
        rows = [{"method": name, **row} for name, found in series.items() for row in found]
        facts = {"rows": rows, "random": random, "nets": verdicts, "probe_needed": NEEDED, "seed": options.seed}
        facts |= {"global_batch": trained["SSQL"]["global_batch"], "seconds": time.perf_counter() - start}
        said = f"random weights, batch norm re-estimated: float probe {random['probe_top1_bn']:.2f} %"
        return write_demo(folder, series, SHOWN, "bits", verdicts, facts, [said])


def _pretrained(name: str, folder: Path, options: RunOptions) -> dict[str, Any]:
    """`result.json` of the pretraining of a method."""
    config = read_config("ssl", CONFIG, (f"SSL.TYPE={KINDS[name]}", *KEYS), {"SEED": options.seed})
    own = PretrainOptions(probe_every=config.TRAIN.EPOCHS)
    what = f"pretraining by {name}, {config.TRAIN.EPOCHS} epochs"
    return run_stage(folder / name, what, lambda given: pretrain.pretrain(given, config, CONFIG, own), options)


def _swept(checkpoint: Path, bits: tuple[Bits, ...], options: RunOptions) -> list[Row]:
    """The rows of a sweep, in a folder beside the checkpoint."""
    own = BitSweepOptions(checkpoint=checkpoint, bits=bits, probe_per_bits=True, dataset="digits", **PROBE)
    folder, what = checkpoint.parent / "sweep", f"sweeping {checkpoint.parent.name}"
    found = run_stage(folder, what, lambda given: sweep.sweep(given, own), options)
    return list(found["rows"])
