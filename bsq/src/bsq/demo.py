"""`bsq demo`: the digits, a small float net, its conversion to 8, 4 and 3 bits; a table, a picture, `result.json`.

Useful means: the trained backbone beats a random-weight one by 10 points under the same probe (nearest class mean of
the features in front of the last layer, which needs no training of its own). Otherwise the demo ends with 1.

One thread: so small a net gains nothing from more, and the table is then the same for any number of cores.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsq import run, train
from bsq.options import ActOptions, NetOptions, SgdOptions, WidthOptions
from bsq.session import RECIPES
from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.errors import EXIT_DONE, EXIT_FAULT, InputError
from lowbit.evaluate.classify import evaluating
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.train.folder import RunFolder

ARCH = "cifar_resnet8_1x1"
NET = NetOptions(arch=ARCH, dataset="digits", test_batch=60)
SGD = SgdOptions(epochs=12, train_batch=64, lr=0.1, schedule=(7, 10), weight_decay=1e-4)
BITS = (8, 4, 3)
NEEDED = 10.0  # points between the trained and the random-weight backbone


def class_means_top1(model: nn.Module) -> float:
    """Percent of test digits whose features lie nearest to the mean of their own class, by Euclidean distance."""
    features = {split: _features(model, split) for split in ("train", "test")}
    train_x, train_y = features["train"]
    test_x, test_y = features["test"]
    means = torch.stack([train_x[train_y == k].mean(0) for k in range(int(train_y.max()) + 1)])
    nearest = torch.cdist(test_x, means).argmin(1)
    return 100 * (nearest == test_y).double().mean().item()


def _features(model: Any, split: Any) -> tuple[Tensor, Tensor]:
    """What the last layer is given, (N, D), and the labels, (N,)."""
    loader = EvalLoader(load_dataset("digits", Path(), split), RECIPES["digits"][1], batch_size=NET.test_batch)
    found, labels = [], []
    with evaluating(model):
        for batch in loader:
            found.append(model.forward_head(model.forward_features(batch.views[0]), pre_logits=True))
            assert batch.label is not None
            labels.append(batch.label)
    return torch.cat(found), torch.cat(labels)


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
    """
    start = time.perf_counter()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"the demo is one process, not WORLD_SIZE={os.environ['WORLD_SIZE']}: start it without a launcher"
        )
    torch.set_num_threads(1)
    where = options.output or Path("runs/bsq-demo")
    options = replace(options, overwrite=options.overwrite or _is_demo(where), resume=None)
    config = {"command": "demo", **asdict(options), **asdict(NET), "sgd": asdict(SGD)}
    with RunFolder.open(where, config, overwrite=options.overwrite) as folder:
        stages = replace(options, overwrite=True)
        float_run = replace(stages, output=folder.path / "float")
        quietly("training the float net", float_run, lambda: train.train(float_run, NET, SGD))
        checkpoint = folder.path / "float" / "checkpoint.pth.tar"
        trained = class_means_top1(load(checkpoint))
        torch.manual_seed(options.seed)
        random = class_means_top1(create_model(ARCH, num_classes=10))
        rows = [_float_row(folder.path / "float")]
        rows += [_convert(replace(stages, output=folder.path / f"bits{bits}"), checkpoint, bits) for bits in BITS]
        lines = list(table(rows))
        (folder.path / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        draw(rows, folder.path / "demo.png")
        useful = trained - random >= NEEDED
        probe = {"probe_top1": trained, "probe_top1_random": random, "probe_needed": NEEDED, "useful": useful}
        facts = {"top1_float": rows[0]["top1"], "rows": rows, "seed": options.seed, "global_batch": SGD.train_batch}
        folder.write_result({**facts, **probe, "seconds": time.perf_counter() - start})
    verdict = f"nearest class mean: trained backbone {trained:.2f} %, random weights {random:.2f} %"
    verdict += "" if useful else f": less than {NEEDED:g} points apart, so this demo shows nothing"
    sys.stdout.write("\n".join([*lines, "", verdict, f"written to {folder.path}"]) + "\n")
    return EXIT_DONE if useful else EXIT_FAULT


def _is_demo(folder: Path) -> bool:
    """Whether the folder holds a demo, which the next one may replace."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("command") == "demo"
    except (OSError, ValueError, AttributeError):
        return False


def quietly(what: str, options: RunOptions, stage: Callable[[], object]) -> None:
    """Run a stage with its record in `record.txt` of its folder instead of stdout."""
    sys.stderr.write(f"{what} …\n")
    record = StringIO()
    with redirect_stdout(record):
        stage()
    assert options.output is not None
    (options.output / "record.txt").write_text(record.getvalue(), encoding="utf-8")


def _float_row(folder: Path) -> dict[str, Any]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    size = (folder / "backbone.safetensors").stat().st_size
    return {"variant": "float", "act": None, "top1": result["top1"], "loss": result["loss"], "bytes": size}


def _convert(options: RunOptions, checkpoint: Path, bits: int) -> dict[str, Any]:
    """Convert and export; a row of the table."""
    net, acts, widths = replace(NET, model=checkpoint), ActOptions(), WidthOptions(bits=bits)
    quietly(f"converting to {bits} bits", options, lambda: run.convert(options, net, acts, widths))
    assert options.output is not None
    result = json.loads((options.output / "result.json").read_text(encoding="utf-8"))
    packed = replace(options, output=options.output.with_name(f"packed{bits}"))
    source = NetOptions(arch=ARCH, model=options.output / "checkpoint.pth.tar")
    quietly("packing", packed, lambda: run.export(packed, source))
    assert packed.output is not None
    size = (packed.output / "packed.safetensors").stat().st_size
    kept = ("top1", "loss", "compression", "compression_signed", "compression_all")
    return {"variant": f"{bits} bits", "act": acts.bits, **{name: result[name] for name in kept}, "bytes": size}


def table(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The rows as a Markdown table."""
    yield "| weights | activations | top-1, % | compression (authors') | with signs | whole net | file, bytes |"
    yield "|---|---|---|---|---|---|---|"
    for row in rows:
        act = "float" if row["act"] is None else f"{row['act']} bits"
        ratios = (f"{row[name]:.2f}x" if name in row else "1x" for name in RATIOS)
        yield f"| {row['variant']} | {act} | {row['top1']:.2f} | {' | '.join(ratios)} | {row['bytes']:,} |"


RATIOS = ("compression", "compression_signed", "compression_all")


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accuracy and file size by variant."""
    from matplotlib.figure import Figure

    names = [row["variant"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, label in (
        (left, [row["top1"] for row in rows], "top-1 on the test digits, %"),
        (right, [row["bytes"] / 1000 for row in rows], "file, kB"),
    ):
        bars = axes.bar(names, values)
        axes.bar_label(bars, fmt="%.1f")
        axes.set(ylabel=label)
    figure.savefig(path, dpi=120)
