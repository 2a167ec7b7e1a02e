"""What a uniform W4A4 step costs beside a float step, beside torch's FakeQuantize and, where installed, Brevitas.

    python tools/bench_quant_step.py [--pairs 25] [--batch 128] [--device cpu] [--points]

ResNet-20 on pictures of 32 x 32. All steps are those that `fit` runs: forward, backward, optimizer, interleaved in one
run; the figure is the median of the ratios of paired steps. Every net quantizes the same places: the weights of all
convolutions, and the output of each ReLU but that of a stem at 8 bits, over ranges that were calibrated once. torch's
`FakeQuantize` stands with its observers switched off, per channel for weights. `--points` times one activation point of
128 x 16 x 32 x 32 values by itself, forward and backward.
"""

import argparse
import importlib.util
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import SGD

from lowbit.data.loader import Loader
from lowbit.data.pictures import MemoryPictures
from lowbit.data.recipe import CIFAR10, cifar_train
from lowbit.models.create import create_model
from lowbit.models.surgery import replace_
from lowbit.quant.bitwidths import quantize_uniform_, set_bits_, set_mode_
from lowbit.quant.calibrate import calibrate_
from lowbit.train.protocol import Objective
from lowbit.train.supervised import Supervised
from ssql.bit_policy import derive_policy

GOAL = 1.25
BITS = 4


def net() -> nn.Module:
    """ResNet-20, the same weights each time."""
    torch.manual_seed(0)
    return create_model("cifar_resnet20_1x1")


def uniform(x: Tensor) -> nn.Module:
    """Ours: ranges from one batch."""
    model = net()
    quantize_uniform_(model, derive_policy(model, (3, 32, 32)))
    set_bits_(model, BITS, BITS)
    calibrate_(model, [x])
    return set_mode_(model, "quantized")


class TorchConv(nn.Module):
    """A convolution whose weight goes through torch's FakeQuantize."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        from torch.ao.quantization import FakeQuantize, PerChannelMinMaxObserver

        self.conv = conv
        self.weight_fake_quant = FakeQuantize(
            PerChannelMinMaxObserver, quant_min=-8, quant_max=7, dtype=torch.qint8, qscheme=torch.per_channel_symmetric
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        return self.conv._conv_forward(x, self.weight_fake_quant(self.conv.weight), self.conv.bias)


def torchs(x: Tensor) -> nn.Module:
    """FakeQuantize of torch in the same places."""
    from torch.ao.quantization import FakeQuantize, MinMaxObserver, disable_observer

    model = net()
    new: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            new[name] = TorchConv(module)
        elif isinstance(module, nn.ReLU):
            point = FakeQuantize(MinMaxObserver, quant_min=0, quant_max=15, dtype=torch.quint8)
            new[name] = nn.Sequential(module, point)
    replace_(model, new)
    with torch.no_grad():
        model(x)
    return model.apply(disable_observer)


def brevitas(x: Tensor) -> nn.Module:
    """Brevitas' own layers in the same places."""
    from brevitas.nn import QuantConv2d, QuantReLU  # type: ignore[import-not-found]

    model = net()
    new: dict[str, nn.Module] = {}
    for name, conv in model.named_modules():
        if isinstance(conv, nn.Conv2d):
            shape = (conv.in_channels, conv.out_channels, conv.kernel_size)
            new[name] = QuantConv2d(*shape, stride=conv.stride, padding=conv.padding, bias=False, weight_bit_width=BITS)
        elif isinstance(conv, nn.ReLU):
            new[name] = QuantReLU(bit_width=BITS)
    return replace_(model, new)


def training(model: nn.Module) -> Objective:
    """Plain supervised training of a net."""
    return Supervised(model, lambda m: SGD(m.parameters(), 0.01, 0.9, weight_decay=1e-4))


def points(x: Tensor) -> None:
    """One activation point by itself, in ms: ReLU, and ours calibrated on `x`."""
    ours = quantize_activation(x)
    for name, module in (("ReLU", nn.ReLU()), ("uniform", ours)):
        forward, backward = [], []
        for _ in range(30):
            leaf, g = x.clone().requires_grad_(), torch.ones_like(x)
            start = time.perf_counter()
            y = module(leaf)
            middle = time.perf_counter()
            y.backward(g)
            backward.append(time.perf_counter() - middle)
            forward.append(middle - start)
        print(f"{name}: {1e3 * statistics.median(forward):.2f} ms + {1e3 * statistics.median(backward):.2f} ms")


def quantize_activation(x: Tensor) -> nn.Module:
    """A ReLU at 4 bits by itself."""
    model = nn.Sequential(nn.Conv2d(x.shape[1], x.shape[1], 1), nn.ReLU()).requires_grad_(False)
    quantize_uniform_(model, derive_policy(model, (x.shape[1], 8, 8)))
    set_bits_(model, BITS, BITS)
    calibrate_(model, [x])
    set_mode_(model, "quantized")
    return model[1]


def main() -> int:
    """Measure and say whether the goal is met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=25)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--points", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tools.bench_bsq_step import stepper

    device = torch.device(options.device)
    pictures = torch.randint(256, (options.batch, 3, 32, 32), dtype=torch.uint8)
    made_up = MemoryPictures("made up", list("0123456789"), pictures, torch.randint(10, (options.batch,)))
    loader = Loader(made_up, cifar_train(CIFAR10), global_batch=options.batch, seed=0, device=device)
    batch = next(loader.epoch(0))  # the loader also has malloc keep what is freed, as in a run
    x = batch.views[0].cpu()
    if options.points:
        points(torch.randn(options.batch, 16, 32, 32, device=device))
    nets = {"uniform": uniform(x), "float": net(), "torch": torchs(x)}
    if importlib.util.find_spec("brevitas") is not None:
        nets["brevitas"] = brevitas(x)
    else:
        print("brevitas: not installed")
    steps = {name: stepper(training(model), batch) for name, model in nets.items()}
    for step in steps.values():
        step(), step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for pair in range(options.pairs):
        for name in list(steps) if pair % 2 else reversed(steps):
            times[name].append(steps[name]())
    reached = 0.0
    for name in [name for name in steps if name != "float"]:
        ratios = sorted(a / b for a, b in zip(times[name], times["float"], strict=True))
        middle, low, high = statistics.median(ratios), ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
        print(f"{name} / float: {middle:.3f} (quartiles {low:.3f} to {high:.3f}, {len(ratios)} pairs)")
        reached = middle if name == "uniform" else reached
    medians = {name: round(1000 * statistics.median(values), 1) for name, values in times.items()}
    print(f"ms a step: {medians}; {torch.get_num_threads()} threads, torch {torch.__version__}, {options.device}")
    print(f"goal {GOAL}: {'met' if reached <= GOAL else 'MISSED'}")
    return 0 if reached <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
