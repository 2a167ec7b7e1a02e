"""What the demos of all methods share: one process, a folder that the next demo may replace, stages, the verdict.

A demo is useful if the trained backbone beats a random-weight one by `NEEDED` points under the same probe.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from lowbit.errors import InputError, Stopped
from lowbit.evaluate.collapse import HEALTHY
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.quant.binary import binarize_

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
    sys.stderr.write(f"{what} …\n")
    record = StringIO()
    with redirect_stdout(record):
        stage(replace(options, output=path, overwrite=True))
    (path / "record.txt").write_text(record.getvalue(), encoding="utf-8")
    result = path / "result.json"
    return json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}


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
