"""`us3l demo`: the digits; one net trained for all widths at once, beside four nets trained alone, each at its width.

All start from the same weights and see the same views in the same order for the same number of epochs. Each is
evaluated at its widths, batch norm re-estimated, with the labels of 200 pictures: a table, a picture (accuracy against
MACs), `result.json`. The random weights of the start, evaluated alike, tell what training is worth: if at a width a net
is useless (`lowbit.demo`, by the probe of the table), or has collapsed, the demo ends with 1.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from lowbit.checkpoint.write import CHECKPOINT
from lowbit.config.tree import dump_config
from lowbit.demo import NEEDED, open_demo, run_stage, save_random_backbone, verdict_without_labels, write_demo
from lowbit.evaluate.table import Row
from lowbit.options import PretrainOptions, RunOptions
from lowbit.slim.widths import show_width
from us3l.commands import FILES, pretrain, sweep
from us3l.config import read_config
from us3l.options import WidthSweepOptions

CONFIG = "configs/base/digits.yaml"
WIDTHS = (0.25, 0.5, 0.75, 1.0)
TOGETHER, ALONE = "one net", "trained alone"  # columns of the table
LABELLED = 200  # pictures; with all of them random features are nearly as good, digits being easy
PROBE: dict[str, Any] = {"probe_lr": 1.0, "probe_epochs": 20}
FIGURE = "probe_top1_retrained_bn"  # of a row: that nets are judged by
SHOWN = (FIGURE, "knn_top1_bn")  # in the table


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    start, made = time.perf_counter(), dump_config(read_config("ssl", CONFIG))
    config = {"probe": PROBE, "config": made}
    with open_demo(options, Path("runs/us3l-demo"), config, FILES) as (options, folder):
        trained = [_pretrained(TOGETHER, folder.path, options)] * len(WIDTHS)
        series = {TOGETHER: _swept(folder.path / TOGETHER / CHECKPOINT, WIDTHS, options), ALONE: list[Row]()}
        for width in WIDTHS:
            name = f"width {show_width(width)}"
            alone = ("MODEL.OFA.NUM_SAMPLE_TRAINING=1", f"MODEL.OFA.WIDTH_MULT={width}")
            trained.append(_pretrained(name, folder.path, options, alone))
            series[ALONE] += _swept(folder.path / name / CHECKPOINT, (width,), options)
        untrained = folder.path / "random/backbone.safetensors"
        save_random_backbone(read_config("ssl", CONFIG).MODEL.net.name, options.seed, untrained)
        random = _swept(untrained, WIDTHS, options)
        rows = [{"method": name, **row} for name, found in series.items() for row in found]
        verdicts = [
            {"method": row["method"], "variant": row["variant"]}
            | verdict_without_labels(row, net, base, NEEDED, FIGURE)
            for row, net, base in zip(rows, trained, random * 2, strict=True)
        ]
        facts = {"rows": rows, "random": random, "nets": verdicts, "seed": options.seed, "labelled": LABELLED}
        facts |= {"probe_needed": NEEDED, "global_batch": trained[0]["global_batch"]}
        facts["seconds"] = time.perf_counter() - start
        named = {f"{net['method']} at width {net['variant']}": net for net in verdicts}
        return write_demo(folder, series, SHOWN, "width", named, facts)


def _pretrained(name: str, folder: Path, options: RunOptions, keys: tuple[str, ...] = ()) -> dict[str, Any]:
    """`result.json` of a pretraining."""
    config = read_config("ssl", CONFIG, keys, {"SEED": options.seed})
    own = PretrainOptions(probe_every=config.TRAIN.EPOCHS)
    what = f"pretraining ({name}), {config.TRAIN.EPOCHS} epochs"
    return run_stage(folder / name, what, lambda given: pretrain.pretrain(given, config, CONFIG, own), options)


def _swept(checkpoint: Path, widths: tuple[float, ...], options: RunOptions) -> list[Row]:
    """The rows of a sweep, in a folder beside the checkpoint; without the probe that is carried along."""
    own = WidthSweepOptions(checkpoint=checkpoint, widths=widths, probe_per_width=True, dataset="digits", **PROBE)
    folder, what = checkpoint.parent / "sweep", f"evaluating ({checkpoint.parent.name})"
    few = replace(options, limit_train=min(LABELLED, options.limit_train or LABELLED))
    found = run_stage(folder, what, lambda given: sweep.sweep(given, own), few)
    return [{key: value for key, value in row.items() if key != "probe_top1_bn"} for row in found["rows"]]
