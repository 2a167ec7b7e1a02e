"""SQAKD beside the fifteen distillation methods on real CIFAR-10: ResNet-20 at W2A2, seeds 0 to 2, one table.

    python tools/sqakd_kd_cifar10.py DATA FLOAT OUTPUT [--jobs 2] [--seeds 0 1 2]

DATA holds CIFAR-10 in torchvision's files, FLOAT is a float ResNet-20 (`cifar_resnet20_1x1`): teacher and start of all
students. A run that is there already is not repeated; an interrupted one goes on (`--resume auto`). The table goes to
OUTPUT/table.md and stdout.

Fixed before the first run: 1,280 training and 1,000 test pictures, batches of 64, 2 epochs (40 steps); EWGS at a
constant scale of 0.001, the shortcuts float; Adam at 1e-3 for the weights and 1e-5 for the quantizers, the losses'
weights, and the temperature as in the authors' scripts; methods of two stages have one epoch more, before the others.
CRD and CKTF draw as large a part of the pictures as negatives as with the authors' 50,000 (419 and 105). Beside the
methods QAT, labels alone. Figures are top-1 with batch norm re-estimated on 512 training pictures, of the last epoch.
So small a budget shows that all methods train, not which is best after hundreds of epochs; what their steps cost is
measured by bench_kd_step.py. The budget is 30 minutes of one free thread for all 51 runs. The pilot (seed 100; QAT
73.3 %, SQAKD 76.9 %) changed nothing.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.experiments import arguments, once, report, spread

from sqakd.kd.registry import METHODS

PICTURES, THEIRS = 1280, 50_000
COMMON = (
    "-a", "cifar_resnet20_1x1", "--exclude", "*downsample*", "--wbits", 2, "--abits", 2, "--quantizer", "ewgs",
    "--bkwd_scaling_factorW", 0.001, "--bkwd_scaling_factorA", 0.001, "--use_hessian", "False", "--limit-train",
    PICTURES, "--limit-eval", 1000, "--calibration", 512, "--batch_size", 64, "--epochs", 2, "--channels-last", "True",
    "--workers", 0,
)  # fmt: skip
CHECKPOINT = "checkpoint/last_checkpoint.pth"
QAT, SQAKD = "QAT", "SQAKD"
Run = dict[str, Any]


def flags(method: str) -> tuple[object, ...]:
    """What a row says beside `COMMON` and the teacher."""
    if method == QAT:
        return ()
    if method == SQAKD:
        return ("--distill", "kd")
    more: tuple[object, ...] = ("--kd_gamma", 0.1, "--kd_alpha", 0.9) if method == "kd" else ()
    if METHODS[method].two_stages:
        more = ("--init_epochs", 1)
    if METHODS[method].negatives:
        more = ("--nce_k", round(METHODS[method].negatives * PICTURES / THEIRS))
    return ("--distill", method, *more)


def title(method: str) -> str:
    """Of a row."""
    return METHODS[method].title if method in METHODS else method


def run(seed: int, method: str, data: Path, teacher: Path, output: Path) -> Run:
    """One training."""
    start = ("--load_pretrain", "True", "--pretrain_path", teacher)
    own = () if method == QAT else ("--teacher_path", teacher, *flags(method))
    more = ("--data", data, "--seed", seed, *COMMON, *start, *own)
    folder = output / f"{method}-seed{seed}".lower()
    found = once("sqakd", folder, True, "train_quant", *more, checkpoint=CHECKPOINT)
    return {"seed": seed, "method": method, **{key: found[key] for key in ("top1", "top1_bn", "seconds")}}


def table(runs: Sequence[Run]) -> str:
    """A row per method, mean and deviation over the seeds."""

    def of(method: str, key: str) -> list[float]:
        return [r[key] for r in runs if r["method"] == method]

    lines = ["| | labels | top-1, % | as it is, % |", "|---|---|---|---|"]
    for method in (QAT, SQAKD, *METHODS):
        labels = "not read" if method == SQAKD else "read"
        cells = (spread(of(method, key)) for key in ("top1_bn", "top1"))
        lines.append(f"| {title(method)} | {labels} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print the table."""
    parser = arguments(__doc__, "data", "teacher", "output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    o, begun = parser.parse_args(), time.perf_counter()
    with ThreadPoolExecutor(o.jobs) as pool:
        jobs = product(o.seeds, (QAT, SQAKD, *METHODS))
        runs = list(pool.map(lambda job: run(job[0], job[1], o.data, o.teacher, o.output), jobs))
    report(runs, table(runs), o.output, begun)


if __name__ == "__main__":
    main()
