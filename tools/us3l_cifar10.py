"""US3L, BYOL at random widths, and nets trained alone, on real CIFAR-10, a shortened schedule: accuracy by width.

    python tools/us3l_cifar10.py DATA OUTPUT [--jobs 2]

DATA holds CIFAR-10 in torchvision's files. A run that is there already is not repeated; an interrupted one goes on
(`--resume auto`). The table goes to OUTPUT/table.md and stdout.

Fixed before the first run: ResNet-8 (16-32-64; 8-8-16 at width 0.25), on 10,000 training pictures shown at 16 x 16,
heads of 256 instead of 2048, batches of 64, cosine from 0.12, 20 epochs of each, seeds 0, 1, 2.

- US3L: the shipped `us_resnet18_simclr_featdistill_cifar` (SimCLR with a momentum copy, dynamic sampling, group
  regularization);
- BYOL at random widths: `us_resnet18_byol_cifar`, four widths a step;
- alone: the method and base loss of the first at one width each, without distillation, four nets a seed.

Each last checkpoint is swept over four widths (a net trained alone: its own): weighted k-NN and a probe retrained at
the width, batch norm re-estimated there, the 10,000 pictures as bank and training set, on 5,000 test pictures.
Before that, trials with seed 100 and 2,000 test pictures: US3L of 12 epochs, k-NN 41.1 % at width 1 and 37.5 % at 0.25,
against 33.6 and 23.3 % of random weights; BYOL after 4 of 12 epochs 36.9 and 35.0 %. The budget is 120 minutes for all.
"""

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.experiments import arguments, once, report, spread

SEEDS, WIDTHS = (0, 1, 2), (0.25, 0.5, 0.75, 1.0)
ALONE = [f"alone {width}" for width in WIDTHS]
METHODS = ("US3L", "BYOL, random widths", *ALONE)
NET, SIDE, EPOCHS, BATCH, LR, HEAD = "us_cifar_resnet8_1x1", 16, 20, 64, 0.12, 256
PICTURES = ("--limit-train", "10000", "--limit-eval", "5000", "--channels-last", "--workers", "0")
KEYS = (
    f"MODEL.ARCH={NET}",
    f"MODEL.INPUTSHAPE=[{SIDE}, {SIDE}]",
    "TRAIN.DATASET=cifar10",
    f"TRAIN.EPOCHS={EPOCHS}",
    f"TRAIN.BATCH_SIZE={BATCH}",
    f"TRAIN.GLOBAL_BATCH={BATCH}",
    f"TRAIN.LR_SCHEDULER.BASE_LR={LR}",
    f"SSL.SETTING.DIM={HEAD}",
    f"SSL.SETTING.HIDDEN_DIM={HEAD}",
)
SINGLE = ("MODEL.OFA.NUM_SAMPLE_TRAINING=1", "MODEL.OFA.SAMPLE_SCHEDULER=", "MODEL.OFA.DISTILL=False")
DECAY = ("MODEL.OFA.REGULARIZER=False", "TRAIN.OPTIMIZER.WEIGHT_DECAY=1e-4")  # what half of it regularizes in US3L
FIGURES = {"knn_top1_bn": "weighted k-NN", "probe_top1_retrained_bn": "probe"}


def run(method: str, seed: int, data: Path, output: Path) -> dict[str, Any]:
    """Pretraining and the sweep of what it ends with."""
    folder = output / f"{method.replace(',', '').replace(' ', '-').lower()}-seed{seed}"
    common = ("--data", data, "--seed", seed, *PICTURES)
    config = "us_resnet18_byol_cifar" if method.startswith("BYOL") else "us_resnet18_simclr_featdistill_cifar"
    width = method.partition(" ")[2] if method in ALONE else None
    own = () if width is None else (*SINGLE, *DECAY, f"MODEL.OFA.WIDTH_MULT={width}")
    path = f"configs/cifar/{config}.yaml"
    every = ("--probe-every", "10")
    trained = once("us3l", folder / "ssl", True, "ssl", "--config", path, *common, *every, *KEYS, *own)
    widths = ("--widths", width or ",".join(map(str, WIDTHS)), "--probe-per-width")
    swept = once("us3l", folder / "sweep", False, "sweep", folder / "ssl/checkpoint.pth.tar", *widths, *common)
    kept = {"seconds": trained["seconds"], "seconds_swept": swept["seconds"], "z_std": trained.get("z_std_relative")}
    return {"method": method, "seed": seed, **kept, "rows": {row["variant"]: row for row in swept["rows"]}}


def table(runs: Sequence[dict[str, Any]]) -> str:
    """A row per width with mean and deviation over the seeds of each method, and what each training took."""

    def of(method: str, width: float, figure: str) -> str:
        name = f"alone {width}" if method == "alone" else method
        rows = [row for r in runs if r["method"] == name for row in r["rows"].values()]
        return spread([row[figure] for row in rows if row["variant"] == f"{width:g}"])

    columns = ("US3L", "BYOL, random widths", "alone")
    lines = []
    for figure, title in FIGURES.items():
        lines += [f"| {title}, width | {' | '.join(columns)} |", "|---|---|---|---|"]
        lines += [f"| {width:g} | {' | '.join(of(name, width, figure) for name in columns)} |" for width in WIDTHS]
        lines.append("")
    lines += ["| training | seconds, by seed | of the sweep | std of z x sqrt(D) |", "|---|---|---|---|"]
    for method in METHODS:
        own = [r for r in runs if r["method"] == method]
        cells = (", ".join(f"{r[key]:.{digits}f}" for r in own)
                 for key, digits in (("seconds", 0), ("seconds_swept", 0), ("z_std", 2)))  # fmt: skip
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all, print the table."""
    o, begun = arguments(__doc__, "data", "output").parse_args(), time.perf_counter()
    jobs = [(method, seed) for seed in SEEDS for method in METHODS]
    with ThreadPoolExecutor(o.jobs) as pool:
        runs = list(pool.map(lambda job: run(job[0], job[1], o.data, o.output), jobs))
    report(runs, table(runs), o.output, begun)


if __name__ == "__main__":
    main()
