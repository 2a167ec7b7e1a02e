"""What a W4A4 step with learned quantizers costs beside a float step: median of paired, interleaved steps.

    python tools/bench_qat_step.py [--quantizers lsq ewgs ste pact dorefa] [--pairs 25] [--batch 128] [--device cpu]
                                   [--points]

ResNet-20 on pictures of 32 x 32, every layer but the first and the classifier quantized with its input. Steps are those
that `fit` runs: forward, backward, optimizer. `--distill` compares a step that learns from a float teacher without
labels with a QAT step and one forward of the teacher (goal 1.05). `--points` gives the CPU time of one input quantizer
by itself, on 128 x 16 x 32 x 32 values, forward and backward.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from lowbit.data.batch import Batch
from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.models.create import create_model
from lowbit.options import QUANTIZERS
from lowbit.quant.initialize import initialize_
from lowbit.quant.learned import LearnedConfig
from lowbit.quant.learned_layers import input_quantizer, layer_points, quantize_learned_
from lowbit.train.supervised import Supervised
from sqakd.objective import Sqakd

GOAL, DISTILLED, BITS = 1.25, 1.05, 4


def net(quantizer: str, x: Tensor) -> nn.Module:
    """ResNet-20, the same weights each time, under a quantizer or "float"."""
    torch.manual_seed(0)
    model = create_model("cifar_resnet20_pad")
    if quantizer != "float":
        config = LearnedConfig(quantizer, BITS)
        quantize_learned_(model, layer_points(model), lambda name: (config, config))
        initialize_(model.train(), [x])
    return model


def points(quantizer: str, x: Tensor) -> str:
    """CPU time of one input quantizer, in ms."""
    module = input_quantizer(LearnedConfig(quantizer, BITS))
    assert module is not None
    module.to(x.device).initialize_(x)  # type: ignore[operator]
    leaf, g = x.clone().requires_grad_(), torch.ones_like(x)
    wanted, y = [leaf, *module.parameters()], module(leaf)
    forward = cpu_time(lambda: module(leaf))
    backward = cpu_time(lambda: torch.autograd.grad(y, wanted, g, retain_graph=True))
    return f"{quantizer}: {forward:.2f} ms + {backward:.2f} ms"


def cpu_time(call: Callable[[], object], times: int = 20) -> float:
    """Lower quartile of the process's CPU time of a call, in ms."""
    found = []
    for _ in range(times):
        start = time.process_time()
        call()
        found.append(1e3 * (time.process_time() - start))
    return sorted(found)[times // 4]


def sgd(model: nn.Module) -> dict[str, Optimizer]:
    """One optimizer of all."""
    return {"main": SGD(model.parameters(), 1e-3, 0.9)}


def distilled(quantizers: Sequence[str], batch: Batch, pairs: int, stepper: Callable[..., Any]) -> int:
    """A step with a teacher over a step with labels and one forward of the teacher."""
    x, missed = batch.views[0], 0
    teacher = net("float", x.cpu()).eval()
    for name in quantizers:
        students = [net(name, x.cpu()) for _ in range(2)]
        with_labels = stepper(Sqakd(students[0], sgd, gamma=1.0), batch)
        taught = stepper(Sqakd(students[1], sgd, teacher), batch)
        found = []
        for pair in range(pairs + 1):
            begun = time.perf_counter()
            with torch.no_grad():
                teacher(x)
            forward = time.perf_counter() - begun
            ratio = taught() / (with_labels() + forward)
            found += [ratio] if pair else []
        reached = statistics.median(found)
        missed += reached > DISTILLED
        print(f"{name}: with a teacher / (with labels + its forward): {reached:.3f}, goal {DISTILLED}")
    return int(missed > 0)


def main() -> int:
    """Measure and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quantizers", nargs="+", default=["lsq", "ewgs"], choices=QUANTIZERS)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--points", action="store_true")
    parser.add_argument("--distill", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools.bench_bsq_step import stepper

    device = torch.device(options.device)
    pictures = torch.randint(256, (options.batch, 3, 32, 32), dtype=torch.uint8)
    made_up = MemoryPictures("made up", list("0123456789"), pictures, torch.randint(10, (options.batch,)))
    loader = Loader(made_up, cifar_train(CIFAR10), global_batch=options.batch, seed=0, device=device)
    batch = next(loader.epoch(0))  # the loader also has malloc keep what is freed, as in a run
    if options.points:
        x = torch.randn(options.batch, 16, 32, 32, device=device).relu()
        print("\n".join(points(quantizer, x) for quantizer in options.quantizers))
        return 0
    if options.distill:
        return distilled(options.quantizers, batch, options.pairs, stepper)
    steps = {}
    for name in ("float", *options.quantizers):
        model = net(name, batch.views[0].cpu())
        objective = Supervised(model, lambda m: SGD(m.parameters(), 1e-3, 0.9, weight_decay=1e-4))
        steps[name] = stepper(objective, batch)
        steps[name](), steps[name]()
    ratios: dict[str, list[float]] = {name: [] for name in options.quantizers}
    for _ in range(options.pairs):
        for name, found in ratios.items():
            before, own, after = steps["float"](), steps[name](), steps["float"]()
            found.append(2 * own / (before + after))
    reached = {name: statistics.median(found) for name, found in ratios.items()}
    for name, found in ratios.items():
        quarter = statistics.quantiles(found, n=4)
        print(f"{name} / float: {reached[name]:.3f} (quartiles {quarter[0]:.3f} to {quarter[2]:.3f})")
    print(f"{options.pairs} pairs, {torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    missed = [name for name, ratio in reached.items() if ratio > GOAL]
    print(f"goal {GOAL}: {'MISSED by ' + ', '.join(missed) if missed else 'met'}")
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
