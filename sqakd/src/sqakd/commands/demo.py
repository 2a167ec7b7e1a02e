"""`sqakd demo`: the digits; a float teacher, then 2-bit nets: by QAT with labels, by SQAKD without.

Of each quantizer both start from the teacher and have the same steps and rates. It ends with 1 if that is useless.
"""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from lowbit.demo import NEEDED, explain_stop, prepare, probe_digits, run_stage, verdict
from lowbit.errors import EXIT_DONE, EXIT_FAULT
from lowbit.evaluate.table import bars
from lowbit.loading import load
from lowbit.models.create import create_model
from lowbit.options import RunOptions
from lowbit.train import console
from lowbit.train.folder import RunFolder
from sqakd.commands import FILES
from sqakd.commands.export import export
from sqakd.commands.training import NAMES, train
from sqakd.options import TrainOptions

ARCH = "cifar_resnet8_1x1"
FLOAT = TrainOptions(command="train_fp", arch=ARCH, dataset="digits", epochs=12, batch_size=64, optimizer_m="sgd",
                     lr_m=0.1)  # fmt: skip
LOW = replace(FLOAT, command="train_quant", epochs=10, optimizer_m="adam", lr_m=1e-3, lr_q=1e-3, wbits=2, abits=2)
QUANTIZERS = ("ewgs", "lsq", "pact")
METHODS = {"qat": "QAT, with labels", "sqakd": "SQAKD, without"}


def demo(options: RunOptions) -> int:
    """Run it all into `options.output`; an earlier demo there is replaced. Returns the exit code.

    Raises:
        InputError: the folder holds something else than a demo, or several processes were started.
        Stopped: a stop signal came.
    """
    start = time.perf_counter()
    options = prepare(options, Path("runs/sqakd-demo"))
    assert options.output is not None
    config = {"command": "demo", **asdict(options), "float": FLOAT.described, "low": LOW.described}
    with RunFolder.open(options.output, config, overwrite=options.overwrite, files=FILES) as folder:
        teacher = folder.path / "teacher" / NAMES[""].last
        with explain_stop():
            top1 = _trained("teacher", FLOAT, folder.path, options)["top1_bn"]
            rows = [_row(quantizer, teacher, folder.path, options) for quantizer in QUANTIZERS]
        torch.manual_seed(options.seed)
        figures = [probe_digits(net) for net in (load(teacher), create_model(ARCH, num_classes=10))]
        useful, said = verdict("nearest class mean", figures[0], figures[1], NEEDED)
        size = (folder.path / "teacher/backbone.safetensors").stat().st_size
        lines = [
            f"| weights and inputs | {', % | '.join(METHODS.values())}, % | file, bytes |", "|---|---|---|---|",
            f"| float (the teacher) | {top1:.2f} | | {size:,} |",
            *(f"| 2 bits, {r['variant']} | {r['qat']:.2f} | {r['sqakd']:.2f} | {r['bytes']:,} |" for r in rows),
        ]  # fmt: skip
        (folder.path / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        series = {name: [row[key] for row in rows] for key, name in METHODS.items()}
        bars(series, [row["variant"] for row in rows], ("float teacher", top1), folder.path / "demo.png")
        facts = {"top1_float": top1, "rows": rows, "useful": useful, "seed": options.seed, "global_batch": 64}
        folder.write_result({**facts, "seconds": time.perf_counter() - start})
    console.say(*lines, "", said, f"written to {folder.path}")
    return EXIT_DONE if useful else EXIT_FAULT


def _trained(name: str, own: TrainOptions, folder: Path, options: RunOptions) -> dict[str, Any]:
    return run_stage(folder / name, f"training ({name}), {own.epochs} epochs", lambda given: train(given, own), options)


def _row(quantizer: str, teacher: Path, folder: Path, options: RunOptions) -> dict[str, Any]:
    """Both trainings of a quantizer, and the bytes of the net without labels."""
    qat = replace(LOW, quantizer=quantizer, delta_w=1e-3, delta_a=1e-3, start=teacher)
    sqakd = replace(qat, distill="kd", teacher_path=teacher, kd_gamma=0.0, kd_alpha=1.0)
    both = {"qat": qat, "sqakd": sqakd}
    found = {name: _trained(f"{quantizer}-{name}", own, folder, options) for name, own in both.items()}
    path = folder / f"{quantizer}-sqakd"
    run_stage(path / "packed", f"packing {path.name}", lambda given: export(given, path / NAMES[""].last), options)
    top1 = {name: one["top1_bn"] for name, one in found.items()}
    return {"variant": quantizer, **top1, "bytes": (path / "packed/packed.safetensors").stat().st_size}
