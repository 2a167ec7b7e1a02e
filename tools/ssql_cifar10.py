"""SSQL against SimSiam on real CIFAR-10, a shortened schedule: accuracy at each bit-width by k-NN and by a float probe.

    python tools/ssql_cifar10.py DATA OUTPUT [--jobs 2]

DATA holds CIFAR-10 in torchvision's files. A run that is there already is not repeated; an interrupted one goes on
(`--resume auto`). The tables go to OUTPUT/table.md and stdout.

Fixed before the first run: ResNet-8 (16-32-64), for its cost, on 10,000 training pictures shown at 16 x 16 (at 32 x 32
the budget is 10 epochs), the shipped configs of both methods with heads of 256 instead of 2048, batches of 64, rate
0.06 with a cosine to 0, 20 epochs of either method (like for like, as in the paper; a step of SSQL has twice the
forwards, and the seconds of both are printed), seeds 0, 1, 2. Before that, two trials of SimSiam alone with seed 100,
k-NN on 2,000 test pictures: 32 x 32 at 0.03 (about 34 % after 3 epochs), 16 x 16 at 0.06 (37 % after 12 of 12); a net
that was hardly trained had 32 %. Each last checkpoint is swept over the paper's widths: weighted k-NN and a linear
probe trained on float features, with the 10,000 pictures as bank and training set, on 5,000 test pictures; both also
with batch norm re-estimated at the width. The budget is 40 minutes on two cores for all, sweeps included.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.experiments import arguments, once, report, spread

METHODS, SEEDS = {"SimSiam": "simsiam", "SSQL": "ssql_simsiam"}, (0, 1, 2)
BITS = ("fp", "8w8f", "5w5f", "4w4f", "3w3f", "2w8f", "2w4f")
NET, SIDE, EPOCHS, BATCH, LR, HEAD = "cifar_resnet8_1x1", 16, 20, 64, 0.06, 256
PICTURES = ("--limit-train", "10000", "--limit-eval", "5000", "--channels-last", "--workers", "0")
KEYS = (
    f"MODEL.ARCH={NET}",
    f"MODEL.INPUTSHAPE=[{SIDE}, {SIDE}]",
    f"TRAIN.EPOCHS={EPOCHS}",
    f"TRAIN.BATCH_SIZE={BATCH}",
    f"TRAIN.GLOBAL_BATCH={BATCH}",
    f"TRAIN.LR_SCHEDULER.BASE_LR={LR}",
    f"SSL.SETTING.DIM={HEAD}",
    f"SSL.SETTING.HIDDEN_DIM={HEAD}",
)
FIGURES = {
    "knn_top1": "weighted k-NN",
    "probe_top1": "float probe",
    "knn_top1_bn": "weighted k-NN, batch norm re-estimated",
    "probe_top1_bn": "float probe, batch norm re-estimated",
}


def run(method: str, seed: int, data: Path, output: Path) -> dict[str, Any]:
    """Pretraining and the sweep of what it ends with."""
    folder, common = output / f"{METHODS[method]}-seed{seed}", ("--data", data, "--seed", seed, *PICTURES)
    config = f"configs/cifar/resnet18_{METHODS[method]}_cifar.yaml"
    trained = once("ssql", folder / "ssl", True, "ssl", "--config", config, *common, *KEYS)
    swept = once(
        "ssql", folder / "sweep", False, "sweep", folder / "ssl/checkpoint.pth.tar", "--bits", ",".join(BITS), *common
    )
    kept = {"seconds": trained["seconds"], "seconds_swept": swept["seconds"], "z_std": trained["z_std_relative"]}
    return {"method": method, "seed": seed, **kept, "rows": {row["variant"]: row for row in swept["rows"]}}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """By figure: a row per width with mean and deviation of both methods and of their paired differences."""
    lines: list[str] = []
    for figure, title in FIGURES.items():
        lines += [f"| {title} | SimSiam | SSQL | SSQL - SimSiam, by seed | mean |", "|---|---|---|---|---|"]
        for bits in BITS:
            simsiam, ssql = ([r["rows"][bits][figure] for r in runs if r["method"] == method] for method in METHODS)
            gains = [b - a for a, b in zip(simsiam, ssql, strict=True)]
            by_seed = ", ".join(f"{gain:+.2f}" for gain in gains)
            lines.append(f"| {bits} | {spread(simsiam)} | {spread(ssql)} | {by_seed} | {spread(gains, '+')} |")
        lines.append("")
    lines += ["| method | seed | seconds of training | of the sweep | std of z x sqrt(D) |", "|---|---|---|---|---|"]
    for r in runs:
        lines.append(
            f"| {r['method']} | {r['seed']} | {r['seconds']:.0f} | {r['seconds_swept']:.0f} | {r['z_std']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print the tables."""
    o, begun = arguments(__doc__, "data", "output").parse_args(), time.perf_counter()
    jobs = [(method, seed) for seed in SEEDS for method in reversed(METHODS)]  # the longer ones first
    with ThreadPoolExecutor(o.jobs) as pool:
        runs = list(pool.map(lambda job: run(job[0], job[1], o.data, o.output), jobs))
    report(runs, table(runs), o.output, begun)


if __name__ == "__main__":
    main()
