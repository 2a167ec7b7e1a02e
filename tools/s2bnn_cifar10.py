"""S2-BNN's three methods on real CIFAR-10, a small binary student, a shortened schedule: a linear probe of each step.

    python tools/s2bnn_cifar10.py DATA TEACHER OUTPUT [--jobs 2] [--seeds 0 1 2] [--pictures N]

DATA holds CIFAR-10 in torchvision's files, TEACHER is the float ResNet-20 of BSQ's authors. That teacher was trained
WITH labels, on all of CIFAR-10: distillation from its pooled features is no self-supervised result, contrast is one.
A run that is there already is not repeated; an interrupted one goes on (`--resume auto`). The table goes to
OUTPUT/table.md and stdout.

Fixed before the first run: student ResNet-8 (16-32-64, all convolutions but the stem binary), 64 channels of embedding,
as many as the teacher's features, two layers at its end; 10,000 training pictures, batches of 128, Adam from 0.003 with
the authors' linear decay, no weight decay, temperature 0.2, 4,096 keys; EPOCHS of step 1, then of step 2 from its
weights. The probe of each step: 40 epochs on the features of the same 10,000 pictures, 5,000 test pictures. Beside
them the same probe of random weights at each step, and of the teacher.

The pilot (seed 100, 4,000 pictures, 4 epochs of each step; no seed of the experiment): probes of 34.8 and 36.9 % after
step 1 and 2 by distillation, 33.4 and 32.1 % by contrast, random weights 24.9 and 25.2 %, the teacher 92.5 %; so both
learn, and nothing but EPOCHS (4 to 6) was changed. It took 42 and 46 seconds a step by distillation, 34 by contrast,
one thread: 10,000 pictures and 6 epochs of nine series need about an hour, so the budget is 90 minutes for all, not 40.
The log calls the distilled embeddings collapsed (deviation 0.2 to 0.25 of a uniform one's): the teacher's features come
out of a ReLU, are all positive, and lie that close together, too.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tools.experiments import arguments, once, report, spread

from lowbit.demo import save_random_backbone

METHODS = ("contrastive", "contrastive+distillation", "distillation")
NET, TEACHER_NET, STEPS, EPOCHS = "cifar_resnet8_1x1", "cifar_resnet20_1x1", (1, 2), 6
TRAIN = (
    "--epochs", EPOCHS, "-b", 128, "--lr", 0.003, "--wd", 0, "--cos", "--moco-dim", 64, "--moco-k", 4096, "--moco-t",
    0.2, "--mlp", "--aug-plus", "--student", NET, "--keep", 0, "--probe-every", EPOCHS,
)  # fmt: skip
Row = dict[str, Any]
PROBE = ("--epochs", 40, "--schedule", 24, 32, "--lr", 1.0, "-b", 128, "--cache-features")


@dataclass(frozen=True)
class Experiment:
    """Where its files are, and how many training pictures there are; half as many are tested on."""

    data: Path
    teacher: Path
    output: Path
    pictures: int

    def pretrained(self, method: str, seed: int) -> list[Row]:
        """Both steps of a method, each with its probe."""
        learns = ("-a", TEACHER_NET, "--teacher-path", self.teacher) if "distillation" in method else ()
        rows: list[Row] = []
        before: tuple[object, ...] = ()
        for step in STEPS:
            place = self.output / f"{method}-seed{seed}" / f"step{step}"
            own = ("--method", method, "--step", step, "--seed", seed, *learns, *before)
            trained = once("s2bnn", place, True, "main_moco", self.data, *self.shown, *TRAIN, *own)
            kept = {key: trained[key] for key in ("knn_top1", "z_std_relative")}
            row = {"method": method, "step": step, **kept, **self.probed(place / "checkpoint.pth.tar", seed)}
            rows.append({**row, "seconds": row["seconds"] + trained["seconds"]})
            before = ("--model-path", place / "checkpoint.pth.tar")
        return rows

    def untrained(self, seed: int) -> list[Row]:
        """The probes of random weights at each step, and of the teacher at step 0."""
        rows = [{"method": "random", "step": step, **self.probed(self.random(seed, step), seed)} for step in STEPS]
        place, own = self.output / f"teacher-seed{seed}", ("--student", TEACHER_NET, "--step", 0)
        return [*rows, {"method": "teacher", "step": 0, **self.probed(self.teacher, seed, place, *own)}]

    def random(self, seed: int, step: int) -> Path:
        """Where the weights that a training starts from are."""
        return self.output / f"random-seed{seed}" / f"step{step}" / "backbone.safetensors"

    def probed(self, path: Path, seed: int, place: Path | None = None, *own: object) -> Row:
        """The linear evaluation of a file."""
        line = ("main_lincls", self.data, *self.shown, *PROBE, "--pretrained", path, "--seed", seed, *own)
        found = once("s2bnn", (place or path.parent) / "lincls", True, *line)
        return {"seed": seed, "top1": found["top1"], "seconds": found["seconds"]}

    @property
    def shown(self) -> tuple[object, ...]:
        """What all command lines say of the pictures."""
        limits = ("--limit-train", self.pictures, "--limit-eval", self.pictures // 2)
        return ("--dataset", "cifar10", *limits, "--channels-last", True, "--workers", 0)


def table(rows: Sequence[Row]) -> str:
    """Mean and deviation over the seeds, of each method and step."""

    def of(method: str, step: int, figure: str) -> str:
        return spread([row[figure] for row in rows if (row["method"], row["step"]) == (method, step)])

    lines = [
        "| method | probe, step 1 | probe, step 2 | k-NN, step 1 | k-NN, step 2 | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for method in METHODS:
        cells = [of(method, step, figure) for figure in ("top1", "knn_top1") for step in STEPS]
        seconds = sum(row["seconds"] for row in rows if row["method"] == method)
        lines.append(f"| {method} | {' | '.join(cells)} | {seconds:.0f} |")
    lines.append(f"| random weights | {of('random', 1, 'top1')} | {of('random', 2, 'top1')} | | | |")
    return "\n".join([*lines, "", f"probe of the teacher's features: {of('teacher', 0, 'top1')} %"]) + "\n"


def main() -> None:
    """Run all, print the table."""
    parser = arguments(__doc__, "data", "teacher", "output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, default=10_000, help="fewer for a trial")
    o = parser.parse_args()
    begun = time.perf_counter()
    its = Experiment(o.data, o.teacher, o.output, o.pictures)
    for seed, step in itertools.product(o.seeds, STEPS):  # before any thread draws, too
        its.random(seed, step).parent.mkdir(parents=True, exist_ok=True)
        save_random_backbone(NET, seed, its.random(seed, step), step)
    jobs = [partial(its.pretrained, method, seed) for seed in o.seeds for method in METHODS]
    jobs += [partial(its.untrained, seed) for seed in o.seeds]
    with ThreadPoolExecutor(o.jobs) as pool:
        rows = [row for found in pool.map(lambda job: job(), jobs) for row in found]
    report(rows, table(rows), o.output, begun)


if __name__ == "__main__":
    main()
