"""What a US3L step of three widths costs beside its parts run alone: median of paired steps, as a Markdown line.

    python tools/bench_us3l_step.py [--net us_cifar_resnet18] [--batch 64] [--pairs 25] [--device cpu]

The step is that of the shipped recipe (SimCLR with a momentum copy, group regularization, heads of 2048) at widths 1,
0.5 and 0.25. Its parts are ordinary nets of these widths, each with its own forward, loss, backward, decay and
optimizer step; the widest also has a momentum copy that moves and gives targets. So the ratio is what slicing,
optimizer steps over channels that did not run, and the passing of targets add. The goal (1.05) is held against the
default net and batch.
"""

import argparse
import copy
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import torch

from lowbit.data.batch import Batch
from lowbit.quant.layers import to_plain_
from lowbit.slim.layers import set_width_
from us3l.config import read_config
from us3l.methods import build
from us3l.objective import UniversallySlimmable
from us3l.sampling import Sampling

GOAL = 1.05
WIDTHS = (1.0, 0.5, 0.25)


def joint(net: str) -> UniversallySlimmable:
    """The step of all widths."""
    keys = (f"MODEL.ARCH={net}", "MODEL.OFA.SAMPLE_SCHEDULER=")
    config = read_config("ssl", "configs/cifar/us_resnet18_simclr_featdistill_cifar.yaml", keys, {})
    objective = build(config, (3, 32, 32))
    objective.plan = replace(objective.plan, sampling=Sampling(fixed=WIDTHS))
    return objective


def alone(whole: UniversallySlimmable, width: float) -> UniversallySlimmable:
    """An ordinary net of a width with the loss of that pass; narrow ones have their own stopped outputs for targets."""
    encoder = copy.deepcopy(whole.encoder_q)
    to_plain_(set_width_(encoder, width))
    plan, head = whole.plan, ""
    if width < 1:
        assert plan.distillation is not None
        head = plan.heads[1]
        plan = replace(plan, base=plan.distillation, momentum=None)
    plan = replace(plan, sampling=Sampling(fixed=(1.0,)), heads=(head, ""), decay=plan.decay and replace(plan.decay))
    heads = {head: copy.deepcopy(whole.get_submodule(head))} if head else {}
    return UniversallySlimmable(encoder, plan, whole._optimize, heads=heads)


def main() -> int:
    """Measure and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", default="us_cifar_resnet18")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools.bench_ssql_step import stepper

    views = torch.randn(2, o.batch, 3, 32, 32)
    batch = Batch((views[0], views[1]), torch.arange(o.batch)).to(torch.device(o.device))
    whole = joint(o.net)
    parts = [stepper(alone(whole, width), batch) for width in WIDTHS]
    together = stepper(whole, batch)
    for step in (together, *parts):
        step(), step()
    ratios, joints, sums = [], [], []
    for pair in range(o.pairs):
        first = together() if pair % 2 else 0.0
        sums.append(sum(part() for part in parts))
        joints.append(first or together())
        ratios.append(joints[-1] / sums[-1])
    ratios.sort()
    middle, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    step_ms, parts_ms = (f"{1000 * statistics.median(values):.0f} ms" for values in (joints, sums))
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {o.device}"
    print("| net | batch | step of three widths | its parts alone | ratio (quartiles) | pairs | bar | where |")
    print("|---|---|---|---|---|---|---|---|")
    cells = (o.net, o.batch, step_ms, parts_ms, f"{middle:.3f} ({low:.3f} to {high:.3f})", o.pairs)
    print(f"| {' | '.join(map(str, cells))} | {GOAL}: {'met' if middle <= GOAL else 'MISSED'} | {threads} |")
    return 0 if middle <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
