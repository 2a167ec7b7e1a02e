"""`ssql demo`: the digits; SimSiam and SSQL on it, trained alike, and each swept over bit-widths.

Both start from the same weights and see the same views in the same order for the same number of steps. A table, a
picture, `result.json`. The random weights of the start, swept alike, tell what training is worth: if one of the nets is
useless (`lowbit.demo`, by the float probe of the table), or has collapsed, the demo ends with 1.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lowbit.checkpoint.write import CHECKPOINT
from lowbit.config.tree import dump_config
from lowbit.demo import NEEDED, prepare, run_stage, told_when_stopped, verdict
from lowbit.errors import EXIT_DONE, EXIT_FAULT
from lowbit.evaluate.collapse import HEALTHY
from lowbit.evaluate.table import Row, plot
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder
from ssql.bitwidths import DEFAULT, FLOAT, Bits, parse_bits
from ssql.commands import pretrain, sweep
from ssql.commands.common import FILES
from ssql.config import read_config
from ssql.options import BitSweepOptions, PretrainOptions

CONFIG = "configs/base/digits.yaml"
KINDS = {"SimSiam": "SimSiam", "SSQL": "SSQL_SimSiam"}  # name in the table: SSL.TYPE
KEYS: tuple[str, ...] = ()  # beside the config's own
BITS = parse_bits(DEFAULT)
PROBE: dict[str, Any] = {"probe_lr": 1.0, "probe_epochs": 20}
SHOWN = {  # of a row: in the table
    "probe_top1": "float probe",
    "probe_top1_bn": "float probe, batch norm re-estimated",
    "probe_top1_retrained": "probe trained at each",
    "knn_top1": "k-NN",
}


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    start = time.perf_counter()
    options = replace(prepare(options, Path("runs/ssql-demo")), channels_last=True)  # a quarter faster
    assert options.output is not None
    config = {"command": "demo", **asdict(options), "kinds": KINDS, "keys": KEYS, "probe": PROBE}
    config["config"] = dump_config(read_config("ssl", CONFIG, KEYS))
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=FILES) as folder:
        with told_when_stopped():
            trained = {name: _pretrained(name, folder.path, options) for name in KINDS}
            series = {name: _swept(folder.path / name / CHECKPOINT, BITS, options) for name in KINDS}
            random = _random(config["config"]["MODEL"]["ARCH"], folder.path, options)
        outcomes = {name: outcome(series[name][0], trained[name], random) for name in KINDS}
        lines = list(table(series))
        (folder.path / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        plot(series, folder.path / "demo.png")
        rows = [{"method": name, **row} for name, found in series.items() for row in found]
        useful = all(net["useful"] for net in outcomes.values())
        facts = {"rows": rows, "random": random, "nets": outcomes, "probe_needed": NEEDED, "useful": useful}
        facts |= {"seed": options.seed, "global_batch": trained["SSQL"]["global_batch"]}
        folder.write_result({**facts, "seconds": time.perf_counter() - start})
    said = [f"{name}: {net['said']}" for name, net in outcomes.items()]
    said.append(f"random weights, batch norm re-estimated: float probe {random['probe_top1_bn']:.2f} %")
    sys.stdout.write("\n".join([*lines, "", *said, f"written to {folder.path}"]) + "\n")
    return EXIT_DONE if useful else EXIT_FAULT


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


def _random(arch: str, folder: Path, options: RunOptions) -> Row:
    """What the probes find in the weights that training starts from."""
    torch.manual_seed(options.seed)
    path = folder / "random/backbone.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_backbone(create_model(arch, num_classes=0), path, arch)
    return _swept(path, (FLOAT,), options)[0]


def outcome(row: Row, trained: Mapping[str, Any], random: Row) -> dict[str, Any]:
    """Whether a net is useful and healthy, in numbers and in a sentence.

    Args:
        row: of the float net.
        trained: results of its pretraining.
        random: row of the random-weight net.
    """
    useful, said = verdict("float probe", row["probe_top1"], random["probe_top1"], NEEDED)
    spread = trained["z_std_relative"]
    healthy = spread > HEALTHY
    said += f"; std of z {spread:.2f}/sqrt(D)" + ("" if healthy else f", not above {HEALTHY:g}: it has collapsed")
    return {"z_std_relative": spread, "useful": useful and healthy, "said": said}


def table(series: Mapping[str, list[Row]]) -> Iterator[str]:
    """All sweeps side by side as a Markdown table, in percent."""
    names = list(series)
    yield f"| bits | {' | '.join(f'{title}: {name}' for title in SHOWN.values() for name in names)} |"
    yield "|---" * (1 + len(SHOWN) * len(names)) + "|"
    for rows in zip(*series.values(), strict=True):
        figures = (f"{row[key]:.2f}" for key in SHOWN for row in rows)
        yield f"| {rows[0]['variant']} | {' | '.join(figures)} |"
