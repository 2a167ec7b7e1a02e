"""What a BSQ step costs beside a float step: median of paired, interleaved steps.

    python tools/bench_bsq_step.py [--pairs 25] [--batch 128] [--device cpu]

ResNet-20 on pictures of 32 x 32; the BSQ net has 8 magnitude bits, 4-bit activations (batch ranges), the group lasso.
Both steps are those that `fit` runs: forward, backward, optimizers, on a batch of the house's loader (which also has
malloc keep what is freed, as in a run). Two float nets are the measure: the plain one, which the goal (1.12) is held
against, and the same with 4-bit activations, which shows what the weights alone cost.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.optim import SGD

from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from bsq.objective import BitSparsity
from lowbit.data.batch import Batch
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.models.create import create_model
from lowbit.options import SgdOptions
from lowbit.train.protocol import Clock, Objective, Pass
from lowbit.train.supervised import Supervised

GOAL = 1.12
SGD_OPTIONS = SgdOptions(epochs=1)


def net(act: int) -> nn.Module:
    """ResNet-20, the same weights each time; 0: plain ReLU."""
    torch.manual_seed(0)
    model = create_model("cifar_resnet20_1x1")
    return quantize_bsq_activations_(model, bits=act) if act else model


def floats(act: int) -> Objective:
    """A float net's training."""
    o = SGD_OPTIONS
    return Supervised(net(act), lambda m: SGD(m.parameters(), o.lr, o.momentum, weight_decay=o.weight_decay))


def bits() -> Objective:
    """BSQ's training between two re-quantisations."""
    return BitSparsity(
        to_bits_(net(4), 8),
        SGD_OPTIONS,
        strength=0.01,
        interval=0,
        threshold=0.0,
        ceiling=lambda name: 8,
        floor=lambda name: 1,
        evaluate=lambda clock, model, when: {},
    )


def stepper(objective: Objective, batch: Batch) -> Callable[[], float]:
    """Seconds of one step."""
    objective.to(batch.views[0].device).train()
    optimizers = objective.optimizers()
    clock, one = Clock(0, 0, 1, 0, 10**6, 0), Pass()

    def step() -> float:
        start = time.perf_counter()
        for optimizer in optimizers.values():
            optimizer.zero_grad()
        objective(batch, clock, one, None).loss.backward()
        for optimizer in optimizers.values():
            optimizer.step()
        objective.after_step(clock, one)
        if batch.views[0].is_cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return step


def main() -> int:
    """Measure and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    pictures = torch.randint(256, (options.batch, 3, 32, 32), dtype=torch.uint8)
    made_up = MemoryPictures("made up", list("0123456789"), pictures, torch.randint(10, (options.batch,)))
    device = torch.device(options.device)
    loader = Loader(made_up, cifar_train(CIFAR10), global_batch=options.batch, seed=0, device=device)
    batch = next(loader.epoch(0))
    steps = {name: stepper(made, batch) for name, made in (("bsq", bits()), ("float", floats(0)), ("act4", floats(4)))}
    for step in steps.values():
        step(), step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(options.pairs):
        for name in list(steps) if pair % 2 else reversed(steps):
            times[name].append(steps[name]())
    for rival in ("float", "act4"):
        ratios = sorted(a / b for a, b in zip(times["bsq"], times[rival], strict=True))
        middle, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        print(f"bsq / {rival}: {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)")
    medians = {name: round(1000 * statistics.median(values), 1) for name, values in times.items()}
    print(f"ms a step: {medians}; {torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    reached = statistics.median(a / b for a, b in zip(times["bsq"], times["float"], strict=True))
    print(f"goal {GOAL}: {'met' if reached <= GOAL else 'MISSED'}")
    return 0 if reached <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
