"""What `fit` costs a step over a bare hand-written loop, on one process: median of paired, interleaved runs.

    python tools/bench_loop.py [--pairs 25] [--steps 300]

Both train the same small net on the same batches with SGD and cross-entropy; `fit` also seeds its generators, evaluates
the learning rate, keeps means and writes metrics. The net is small so that its own noise does not hide microseconds;
the cost does not depend on it. Goal: at most 150 us a step. On a machine that others use, the wall measures them too;
the process's CPU time is what the goal is held against (alone on a machine the two are the same).
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, Optimizer

from lowbit.data.batch import Batch
from lowbit.train.folder import RunFolder
from lowbit.train.loop import Run, fit
from lowbit.train.process import make_accelerator
from lowbit.train.protocol import Clock, Objective, Out, Pass, Stage
from lowbit.train.schedule import cosine

GOAL_US = 150.0


class Ready:
    """Batches that are already there."""

    global_batch = last_batch = 32

    def __init__(self, steps: int) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(32, 64, generator=generator), torch.randint(10, (32,), generator=generator)
        self.batches = [Batch((x,), torch.arange(32), y)] * steps
        self.marks: list[Times] = []

    def __len__(self) -> int:
        return len(self.batches)

    def epoch(self, epoch: int, start: int = 0, *, whole: bool = False) -> Iterator[Batch]:
        """The same batch again and again."""
        self.marks.append(now())
        yield from self.batches[start:]
        self.marks.append(now())


def net() -> nn.Module:
    torch.manual_seed(0)
    sizes = [64, 128, 128, 128, 10]
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def sgd(module: nn.Module) -> SGD:
    return SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)


class Plain(Objective):
    """The same arithmetic as the bare loop."""

    needs_labels = True

    def __init__(self) -> None:
        super().__init__()
        self.student = net()

    def optimizers(self) -> dict[str, Optimizer]:
        """One."""
        return {"main": sgd(self.student)}

    def forward(self, batch: Batch, clock: Clock, pas: Pass, carry: Any) -> Out:
        """Cross-entropy."""
        assert batch.label is not None
        return Out(F.cross_entropy(self.student(batch.views[0]), batch.label))


class Times(NamedTuple):
    """Seconds of one run's batches: on the wall, and of this process's CPU."""

    wall: float
    cpu: float


def now() -> Times:
    return Times(time.perf_counter(), time.process_time())


def bare(loader: Ready) -> Times:
    """The hand-written loop."""
    module, seen = net().train(), torch.zeros(())
    optimizer = sgd(module)
    begun = now()
    for batch in loader.epoch(0):
        optimizer.zero_grad()
        assert batch.label is not None
        loss = F.cross_entropy(module(batch.views[0]), batch.label)
        loss.backward()
        optimizer.step()
        seen += loss.detach()
    ended = now()
    return Times(ended.wall - begun.wall, ended.cpu - begun.cpu)


def ours(loader: Ready) -> Times:
    """`fit` from the first batch to after the last: lines of metrics included, files of checkpoints not."""
    stage = Stage(Plain(), 1, {"main": cosine(0.1)})
    loader.marks.clear()
    with tempfile.TemporaryDirectory() as temporary, RunFolder.open(Path(temporary) / "run", {}) as folder:
        fit([stage], loader, Run(accelerator=make_accelerator("no", cpu=True), folder=folder))
    begun, ended = loader.marks
    return Times(ended.wall - begun.wall, ended.cpu - begun.cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loader = Ready(options.steps)
    bare(loader), ours(loader)  # lazy imports
    extra: list[Times] = []
    plain: list[Times] = []
    for pair in range(options.pairs):
        first, second = (bare, ours) if pair % 2 else (ours, bare)
        times = {first: first(loader), second: second(loader)}
        plain.append(times[bare])
        extra.append(Times(*(b - a for a, b in zip(times[bare], times[ours], strict=True))))

    def per_step(values: Iterable[float]) -> float:
        return round(statistics.median(values) / options.steps * 1e6, 1)

    overhead = {kind: per_step(getattr(t, kind) for t in extra) for kind in Times._fields}
    bare_us = {kind: per_step(getattr(t, kind) for t in plain) for kind in Times._fields}
    print(json.dumps({"overhead_us": overhead, "bare_us": bare_us, "goal_us": GOAL_US, **vars(options)}))
    raise SystemExit(overhead["cpu"] > GOAL_US)


if __name__ == "__main__":
    main()
