"""What an SSQL step costs beside a SimSiam step: median of paired, interleaved steps, as a Markdown line.

    python tools/bench_ssql_step.py [--net cifar_resnet18] [--batch 32] [--pairs 25] [--device cpu]

Both steps are those that `fit` runs: draw, forward, backward, optimizer; pictures of 32 x 32, heads of the authors'
sizes (2048). SSQL has twice the forwards and backwards, so that 2 is the floor; the authors' program takes 2.79. The
goal (2.25) is held against the default net and batch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from lowbit.data.batch import Batch
from lowbit.train.protocol import Clock, Objective
from ssql.config import read_config
from ssql.methods import build
from ssql.objective import SelfSupervised

GOAL = 2.25


def objective(kind: str, net: str) -> SelfSupervised:
    """A method by its shipped config, the same weights each time."""
    torch.manual_seed(0)
    name = f"configs/cifar/resnet18_{kind}_cifar.yaml"
    return build(read_config("ssl", name, (f"MODEL.ARCH={net}",), {}), (3, 32, 32))


def stepper(method: Objective, batch: Batch) -> Callable[[], float]:
    """Seconds of one step, all its passes; every step has its own draw."""
    method.to(batch.views[0].device).train()
    optimizer = method.optimizers()["main"]
    done = 0

    def step() -> float:
        nonlocal done
        clock, done = Clock(0, 0, 1, done, 10**6, 0, done=done), done + 1
        carry: Any = None
        start = time.perf_counter()
        method.before_batch(clock)
        for pas in method.passes(clock):
            optimizer.zero_grad()
            out = method(batch, clock, pas, carry)
            carry = out.carry
            out.loss.backward()
            method.before_step(clock, pas)
            optimizer.step()
            method.after_step(clock, pas)
        method.after_batch(clock, [carry])
        if batch.views[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def main() -> int:
    """Measure and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", default="cifar_resnet18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--device", default="cpu")
    o = parser.parse_args()
    views = torch.randn(2, o.batch, 3, 32, 32)
    batch = Batch((views[0], views[1]), torch.arange(o.batch)).to(torch.device(o.device))
    kinds = ("ssql_simsiam", "simsiam")
    steps = {kind: stepper(objective(kind, o.net), batch) for kind in kinds}
    for step in steps.values():
        step(), step()
    times: dict[str, list[float]] = {kind: [] for kind in kinds}
    for pair in range(o.pairs):
        for kind in kinds if pair % 2 else reversed(kinds):
            times[kind].append(steps[kind]())
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    middle, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    ssql, simsiam = (1000 * statistics.median(values) for values in times.values())
    threads = f"{torch.get_num_threads()} threads, torch {torch.__version__}, {o.device}"
    print("| net | batch | SimSiam step | SSQL step | SSQL / SimSiam (quartiles) | pairs | bar | where |")
    print("|---|---|---|---|---|---|---|---|")
    cells = (o.net, o.batch, f"{simsiam:.0f} ms", f"{ssql:.0f} ms", f"{middle:.3f} ({low:.3f} to {high:.3f})", o.pairs)
    print(f"| {' | '.join(map(str, cells))} | {GOAL}: {'met' if middle <= GOAL else 'MISSED'} | {threads} |")
    return 0 if middle <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
