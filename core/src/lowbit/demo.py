"""What the demos of all methods share: one process, a folder that the next demo may replace, stages, the verdict.

A demo is useful if the trained backbone beats a random-weight one by `NEEDED` points under the same probe.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, replace
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.data.recipe import dataset_channels, plain
from lowbit.errors import EXIT_DONE, EXIT_FAULT, InputError, Stopped
from lowbit.evaluate.class_means import class_means_top1
from lowbit.evaluate.collapse import HEALTHY
from lowbit.evaluate.features import Features, extract
from lowbit.evaluate.table import Row, plot, side_by_side
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.quant.binary import binarize_
from lowbit.train import console
from lowbit.train.folder import RunFolder
from lowbit.train.process import make_accelerator

NEEDED = 10.0  # points between the trained and the random-weight backbone


def prepare(options: RunOptions, folder: Path) -> RunOptions:
    """The options of a demo: its folder (by default `folder`), where an earlier demo is replaced; one thread.

    So small a net gains nothing from more threads, and the tables are then the same for any number of cores.

    Raises:
        InputError: several processes were started.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError(
            f"the demo is one process, not WORLD_SIZE={os.environ['WORLD_SIZE']}: start it without a launcher"
        )
    torch.set_num_threads(1)
    where = options.output or folder
    return replace(options, output=where, overwrite=options.overwrite or is_demo(where), resume=None)


def is_demo(folder: Path) -> bool:
    """Whether the folder holds a demo."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("command") == "demo"
    except (OSError, ValueError, AttributeError):
        return False


@contextmanager
def explain_stop() -> Iterator[None]:
    """Its stages could be resumed, the whole cannot: the message of a stop says so."""
    try:
        yield
    except Stopped as stop:
        raise Stopped("the demo was stopped; started again it begins anew") from stop


def run_stage(path: Path, what: str, stage: Callable[[RunOptions], object], options: RunOptions) -> dict[str, Any]:
    """Run one command into a folder of its own; returns its `result.json`, if it has one.

    Args:
        path: the folder, which may hold the stage of an earlier demo. What the command says goes to `record.txt` there.
        what: it is, for a line on stderr.
        stage: the command.
        options: of the demo.
    """
    console.report(f"{what} …")
    record = StringIO()
    with redirect_stdout(record):
        stage(replace(options, output=path, overwrite=True))
    (path / "record.txt").write_text(record.getvalue(), encoding="utf-8")
    result = path / "result.json"
    return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}


@contextmanager
def open_demo(
    options: RunOptions, folder: Path, config: Mapping[str, Any], files: Sequence[str]
) -> Iterator[tuple[RunOptions, RunFolder]]:
    """The options and the folder of a demo, whose stages follow inside.

    Args:
        options: see `prepare`; pictures and weights have channels last, which is a fifth faster.
        folder: by default.
        config: entries of `config.json`.
        files: patterns of the method's own files.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    options = replace(prepare(options, folder), channels_last=True)
    assert options.output is not None
    said = {"command": "demo", **asdict(options), **config}
    with RunFolder.open(options.output, said, overwrite=options.overwrite, files=files) as opened, explain_stop():
        yield options, opened


def write_demo(
    folder: RunFolder, series: Mapping[str, Sequence[Row]], shown: Sequence[str], title: str,
    verdicts: Mapping[str, Mapping[str, Any]], facts: Mapping[str, Any], remarks: Sequence[str] = (),
) -> int:  # fmt: skip
    """Write and say a table, a picture and `result.json`; the exit code.

    Args:
        folder: of the demo.
        series: rows of sweeps by the column of the table.
        shown: figures of a row.
        title: of the rows' variants.
        verdicts: of `verdict_without_labels`, by the net's name in what is said.
        facts: entries of `result.json`.
        remarks: more lines.
    """
    lines = list(side_by_side(series, shown, title))
    (folder.path / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plot(series, folder.path / "demo.png")
    useful = all(net["useful"] for net in verdicts.values())
    folder.write_result({**facts, "useful": useful})
    said = [f"{name}: {net['said']}" for name, net in verdicts.items()]
    console.say(*lines, "", *said, *remarks, f"written to {folder.path}")
    return EXIT_DONE if useful else EXIT_FAULT


def verdict(probe: str, trained: float, random: float, needed: float) -> tuple[bool, str]:
    """Whether a trained backbone is useful, and a sentence of it.

    Args:
        probe: what both figures are of.
        trained: percent.
        random: of a random-weight backbone under the same probe.
        needed: points between them.
    """
    useful = trained - random >= needed
    said = f"{probe}: trained backbone {trained:.2f} %, random weights {random:.2f} %"
    return useful, said + ("" if useful else f": less than {needed:g} points apart, so this demo shows nothing")


def probe_digits(model: nn.Module) -> float:
    """Nearest class mean on the digits, of the features in front of the last layer, in percent."""
    accelerator, shown = make_accelerator(), plain(dataset_channels("digits"))
    model = model.to(accelerator.device)

    def features(split: Literal["train", "test"]) -> Features:
        return extract(model, EvalLoader(load_dataset("digits", Path(), split), shown, batch_size=60), accelerator)

    return class_means_top1(features("train"), features("test"))


def verdict_without_labels(
    row: Mapping[str, Any],
    trained: Mapping[str, Any],
    random: Mapping[str, Any],
    needed: float = NEEDED,
    figure: str = "probe_top1",
) -> dict[str, Any]:
    """Whether a net that was pretrained without labels is useful and has not collapsed, in numbers and in a sentence.

    Args:
        row: of a sweep, of the float net, or of a sub-network.
        trained: results of its pretraining.
        random: row of the random-weight net.
        needed: points between both probes.
        figure: of the rows, a probe's.
    """
    useful, said = verdict("probe", row[figure], random[figure], needed)
    spread = trained["z_std_relative"]
    healthy = spread > HEALTHY
    said += f"; std of z {spread:.2f}/sqrt(D)" + ("" if healthy else f", not above {HEALTHY:g}: it has collapsed")
    return {"z_std_relative": spread, "useful": useful and healthy, "said": said}


def save_random_backbone(arch: str, seed: int, path: Path, step: int = 0) -> None:
    """The weights that training starts from, as a `backbone.safetensors` in a folder that may be made.

    Args:
        arch: timm name.
        seed: of the draw.
        path: of the file.
        step: what of the net is binary (`lowbit.quant.binary.STEPS`).
    """
    torch.manual_seed(seed)
    path.parent.mkdir(exist_ok=True)
    save_backbone(binarize_(create_model(arch, num_classes=0), step), path, arch)
