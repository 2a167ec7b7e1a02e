"""What a distillation step costs beside a student's step and a teacher's forward: median of paired steps, in Markdown.

    python tools/bench_s2bnn_step.py [--student bireal_resnet18] [--teacher resnet18] [--batch 16] [--pairs 9]

The step of S2-BNN's distillation at step 2, of 32 x 32 pictures; beside it the same student with a plain loss of its
own output, and the teacher alone without gradients. The goal (1.05) is held against the default nets and batch.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowbit.data.batch import Batch
from lowbit.models.create import create_model
from lowbit.models.heads import HEADS, attach_projector_, build_heads
from lowbit.train.protocol import Clock, Objective, Out, Pass
from s2bnn.methods import student_of
from s2bnn.objective import S2bnn
from s2bnn.optim import optimizer
from s2bnn.options import METHODS, PretrainOptions, pretrain_options


class Alone(Objective):
    """The student by itself: its forward, backward and optimizer step."""

    def __init__(self, net: nn.Module, own: PretrainOptions) -> None:
        super().__init__()
        self.net, self.own = net, own

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The same as the distillation's."""
        return {"main": optimizer(self.own, "adam", self)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """The mean square of its output."""
        return Out(self.net(batch.views[0]).square().mean())


def main() -> int:
    """Measure and say whether the goal is met."""
    goal = 1.05
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--student", default="bireal_resnet18")
    parser.add_argument("--teacher", default="resnet18")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--pairs", type=int, default=9)
    o = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools.bench_ssql_step import stepper

    own = pretrain_options(METHODS[2], 2, (), None, student=o.student, mlp=True, moco_t=0.2)
    teacher = create_model(o.teacher, num_classes=1).eval()
    attach_projector_(teacher, lambda width: build_heads(HEADS["MoCo"], width, own.moco_dim, width))
    nets = [student_of(own, (3, 32, 32)) for _ in range(2)]
    batch = Batch((torch.randn(o.batch, 3, 32, 32),), torch.arange(o.batch))
    whole = stepper(S2bnn(nets[0], partial(optimizer, own, "adam"), temperature=own.moco_t, teacher=teacher), batch)
    student = stepper(Alone(nets[1], own), batch)

    @torch.no_grad()
    def taught() -> float:
        start = time.perf_counter()
        teacher(batch.views[0])
        return time.perf_counter() - start

    whole(), student(), taught()
    ratios, together, parts = [], [], []
    for pair in range(o.pairs):
        first = whole() if pair % 2 else 0.0
        parts.append(student() + taught())
        together.append(first or whole())
        ratios.append(together[-1] / parts[-1])
    ratios.sort()
    middle, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    step_ms, parts_ms = (f"{1000 * statistics.median(values):.0f} ms" for values in (together, parts))
    print("| student | teacher | batch | distillation step | its parts | ratio (quartiles) | bar |")
    print("|---|---|---|---|---|---|---|")
    ratio = f"{middle:.3f} ({low:.3f} to {high:.3f})"
    verdict = f"{goal}: {'met' if middle <= goal else 'MISSED'}"
    print(f"| {o.student} | {o.teacher} | {o.batch} | {step_ms} | {parts_ms} | {ratio} | {verdict} |")
    return 0 if middle <= goal else 1


if __name__ == "__main__":
    raise SystemExit(main())
