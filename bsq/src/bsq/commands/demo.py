"""`bsq demo`: the digits; a small float net, its conversion to 8, 4 and 3 bits, and BSQ from the 8 bits on.

BSQ trains in bits with re-quantisations until the net has a twelfth of its bits, then fine-tunes it. Tables, a picture,
`result.json`. If the net is useless (`lowbit.demo`) the demo ends with 1: the probe is nearest class mean of the
features in front of the last layer, which needs no training of its own.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from bsq.commands import finetune, opening, prune, report, train
from bsq.commands.convert import convert
from bsq.commands.export import export
from bsq.options import ActOptions, NetOptions, PruneOptions, WidthOptions
from lowbit.demo import NEEDED, explain_stop, prepare, probe_digits, run_stage, verdict
from lowbit.errors import EXIT_DONE, EXIT_FAULT
from lowbit.files import save_figure
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.options import RunOptions, SgdOptions
from lowbit.train import console
from lowbit.train.folder import RunFolder

ARCH = "cifar_resnet8_1x1"
NET = NetOptions(arch=ARCH, dataset="digits", test_batch=60)
ACTS = ActOptions(bits=4)
FLOAT = SgdOptions(epochs=12, train_batch=64, lr=0.1, schedule=(7, 10), weight_decay=1e-4)
BITS = (8, 4, 3)  # converted without training; BSQ starts from the first
PRUNE = SgdOptions(epochs=20, train_batch=64, lr=0.1, schedule=(14,), weight_decay=1e-4)
SEARCH = PruneOptions(interval=5, target=12.0)
TUNE = SgdOptions(epochs=10, train_batch=64, lr=0.02, schedule=(6, 8), weight_decay=1e-4)


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
    """
    start = time.perf_counter()
    options = prepare(options, Path("runs/bsq-demo"))
    assert options.output is not None
    groups = {"float": asdict(FLOAT), "prune": asdict(PRUNE), "search": asdict(SEARCH), "tune": asdict(TUNE)}
    config = {"command": "demo", **asdict(options), **asdict(NET), **groups}
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=opening.FILES) as folder:
        stages = Stages(options, folder.path)
        with explain_stop():
            rows = [stages.float(), *(stages.converted(bits) for bits in BITS), *stages.bsq()]
        trained = probe_digits(load(folder.path / "float/checkpoint.pth.tar"))
        torch.manual_seed(options.seed)
        random = probe_digits(create_model(ARCH, num_classes=10))
        layers = stages.layers()
        lines = [*table(rows), "", *layer_table(layers)]
        (folder.path / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw(rows, layers, folder.path / "demo.png")
        useful, said = verdict("nearest class mean", trained, random, NEEDED)
        figures = {"probe_top1": trained, "probe_top1_random": random, "probe_needed": NEEDED, "useful": useful}
        facts = {"top1_float": rows[0]["top1"], "rows": rows, "layers": layers, "seed": options.seed}
        facts["global_batch"] = FLOAT.train_batch
        folder.write_result({**facts, **figures, "seconds": time.perf_counter() - start})
    console.say(*lines, "", said, f"written to {folder.path}")
    return EXIT_DONE if useful else EXIT_FAULT


class Stages:
    """The demo's commands, each in a folder of its own with its record in `record.txt`."""

    def __init__(self, options: RunOptions, folder: Path) -> None:
        self.options, self.folder = options, folder

    def run(self, name: str, what: str, stage: Callable[[RunOptions], object]) -> dict[str, Any]:
        """Run one command into the folder `name`; returns its `result.json`, if it has one."""
        return run_stage(self.folder / name, what, stage, self.options)

    def net(self, name: str) -> NetOptions:
        """The net that a stage ended with."""
        return replace(NET, model=self.folder / name / "checkpoint.pth.tar")

    def packed(self, name: str) -> int:
        """Bytes of a stage's net as a packed file."""
        self.run(f"{name}/packed", f"packing {name}", lambda given: export(given, self.net(name), True))
        return (self.folder / name / "packed/packed.safetensors").stat().st_size

    def float(self) -> dict[str, Any]:
        """Train the float net; a row of the table, as the others."""
        result = self.run("float", "training the float net", lambda options: train.train(options, NET, FLOAT))
        size = (self.folder / "float/backbone.safetensors").stat().st_size
        return {"variant": "float", "act": None, "top1": result["top1"], "loss": result["loss"], "bytes": size}

    def converted(self, bits: int) -> dict[str, Any]:
        """The float net at `bits` bits in all layers."""
        name, start = f"bits{bits}", self.net("float")
        said, widths = f"converting to {bits} bits", WidthOptions(bits=bits)
        return self.row(f"{bits} bits", name, self.run(name, said, lambda o: convert(o, start, ACTS, widths)))

    def bsq(self) -> Iterator[dict[str, Any]]:
        """The net that bit training found, and its fine-tuned form."""
        start = self.net(f"bits{BITS[0]}")
        said = f"training in bits down to 1/{SEARCH.target:g}"
        found = self.run("bsq", said, lambda o: prune.prune(o, start, ACTS, PRUNE, SEARCH))
        yield self.row("BSQ", "bsq", found)
        tuned = self.run("finetune", "fine-tuning", lambda o: finetune.finetune(o, self.net("bsq"), ACTS, TUNE))
        yield self.row("BSQ, fine-tuned", "finetune", tuned)

    def row(self, variant: str, name: str, result: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the table out of a stage's results and its packed size."""
        kept = {key: result[key] for key in ("top1", "loss", *RATIOS)}
        return {"variant": variant, "act": ACTS.bits, **kept, "bytes": self.packed(name)}

    def layers(self) -> list[dict[str, Any]]:
        """Each layer of the fine-tuned net: bits, percent of ones per plane, bytes of its codes with their signs."""
        model, _, recipe = opening.read_bits(self.net("finetune"))
        found = report.describe(model, recipe["input_size"])["layers"]
        facts = ("weights", "bits", "bytes")
        ones = {name: {"layer": name, "ones_percent": layer["ones_percent"]["weight"]} for name, layer in found.items()}
        return [{**ones[name], **{fact: layer[fact] for fact in facts}} for name, layer in found.items()]


RATIOS = ("compression", "compression_signed", "compression_all")


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown table."""
    yield "| weights | activations | top-1, % | compression (authors') | with signs | whole net | file, bytes |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        act = "float" if row["act"] is None else f"{row['act']} bits"
        ratios = (f"{row[name]:.2f}x" if name in row else "1x" for name in RATIOS)
        yield f"| {row['variant']} | {act} | {row['top1']:.2f} | {' | '.join(ratios)} | {row['bytes']:,} |"


def layer_table(layers: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What BSQ found, as a Markdown table."""
    yield "| layer after BSQ and fine-tuning | weights | bits | % of ones per plane, most significant first | bytes |"
    yield "|---|---|---|---|---|"
    for row in layers:
        ones = " ".join(f"{percent:.1f}" for percent in row["ones_percent"])
        yield f"| {row['layer']} | {row['weights']:,} | {row['bits']} | {ones} | {row['bytes']:,} |"


def draw(rows: Sequence[Mapping[str, Any]], layers: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy and file size by variant, bits by layer."""
    from matplotlib.figure import Figure

    names = [row["variant"].replace(", ", ",\n") for row in rows]
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, values, label in (
        (left, [row["top1"] for row in rows], "top-1 on the test digits, %"),
        (middle, [row["bytes"] / 1000 for row in rows], "file, kB"),
    ):
        bars = axes.bar(names, values)
        axes.bar_label(bars, fmt="%.1f")
        axes.set(ylabel=label)
        axes.tick_params("x", labelsize=8)
    bars = right.barh([row["layer"] for row in layers], [row["bits"] for row in layers])
    right.bar_label(bars)
    right.invert_yaxis()
    right.set(xlabel="magnitude bits after BSQ")
    save_figure(figure, path)
