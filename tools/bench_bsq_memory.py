"""What BSQ keeps between steps on ResNet-50, and that it follows the plain computation: floats a weight, trajectories.

    python tools/bench_bsq_memory.py [--arch resnet50] [--steps 50] [--size 32] [--batch 4]

Counted: distinct storages held between steps that belong to bit planes (planes, their gradients, their momentum),
divided by the bit layers' weights; the rest (dense weights and their gradients, scales, batch norm) is beside it.
The rival holds planes as ordinary parameters: autograd through the reconstruction, torch's SGD, the clamp. Both run the
same steps on the same made-up pictures in double precision; losses and final weights must agree to 1e-5.
"""

import argparse
import resource
from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from bsq.bit_layer import BitLayer
from bsq.network import bit_layers, to_bits_
from bsq.sgd import CEILING, PlaneSGD
from lowbit.models.create import create_model

LR, MOMENTUM, DECAY, STRENGTH = 0.01, 0.9, 1e-4, 0.01
GOAL, TOLERANCE = 32.0, 1e-5


def net(arch: str) -> nn.Module:
    torch.manual_seed(0)
    return to_bits_(create_model(arch, num_classes=10), 8).double().train()


def batches(steps: int, batch: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64)
        yield x, torch.randint(10, (batch,), generator=generator)


def rest(model: nn.Module, layers: Iterable[BitLayer]) -> list[nn.Parameter]:
    mine = {id(parameter) for layer in layers for parameter in layer.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in mine]


def weights(layers: Iterable[BitLayer]) -> list[Tensor]:
    return [layer.effective(keys).detach().clone() for layer in layers for keys in layer.tensors]


def _some(tensors: Iterable[Tensor | None]) -> Iterator[Tensor]:
    return (t for t in tensors if t is not None)


def floats(tensors: Iterable[Tensor | None]) -> int:
    """Elements of distinct storages."""
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.element_size() for t in _some(tensors)
    }
    return sum(storages.values())


def ours(arch: str, steps: int, batch: int, size: int) -> tuple[list[float], list[Tensor], float]:
    """Losses, final weights, floats a weight."""
    model = net(arch)
    layers = list(bit_layers(model).values())
    planes_sgd = PlaneSGD(layers, LR, MOMENTUM, DECAY, STRENGTH)
    other = SGD(rest(model, layers), LR, MOMENTUM, weight_decay=DECAY)
    losses = []
    for x, y in batches(steps, batch, size):
        planes_sgd.zero_grad(), other.zero_grad()
        ce = F.cross_entropy(model(x), y)
        losses.append((ce + STRENGTH * planes_sgd.lasso()).item())
        ce.backward()
        planes_sgd.step(), other.step()
    slots = [(layer, keys) for layer in layers for keys in layer.tensors]
    planes = [plane for layer, keys in slots for plane in layer.planes(keys)[:2]]
    state = list(planes_sgd.state.values())
    momenta = [values["planes"] for values in state]
    dense = [layer.dense(keys) for layer, keys in slots]
    count = sum(layer.numel(keys) for layer, keys in slots)
    held = [*planes, *(plane.grad for plane in planes), *momenta]
    per_weight = floats(held) / count
    print(f"{arch}: {count:,} weights and biases in bit layers, 8 bits")
    print(f"planes, their gradients and momentum: {per_weight:.3f} floats a weight")
    beside = {
        "dense weights": floats(dense),
        "their gradients": floats(leaf.grad for leaf in dense),
        "scales": len(slots),
        "other parameters and momentum": 2 * floats(other.param_groups[0]["params"]),
    }
    print("beside them:", ", ".join(f"{name} {number / count:.3f}" for name, number in beside.items()))
    return losses, weights(layers), per_weight


def plain(arch: str, steps: int, batch: int, size: int) -> tuple[list[float], list[Tensor]]:
    """The same by autograd through the planes and torch's SGD."""
    model = net(arch)
    layers = list(bit_layers(model).values())
    total = sum(layer.numel(keys) for layer in layers for keys in layer.tensors)
    optimizer = SGD(model.parameters(), LR, MOMENTUM, weight_decay=DECAY)
    losses = []
    for x, y in batches(steps, batch, size):
        optimizer.zero_grad()
        lasso = torch.stack([layer.group_lasso() for layer in layers]).sum() / total
        loss = F.cross_entropy(model(x), y) + STRENGTH * lasso
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for layer in layers:
                for keys in layer.tensors:
                    for plane in layer.planes(keys)[:2]:
                        plane.clamp_(0, CEILING)
    return losses, weights(layers)


def peak() -> float:
    """Of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> int:
    """Measure and say whether both goals are met."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=4)
    o = parser.parse_args()
    losses, found, per_weight = ours(o.arch, o.steps, o.batch, o.size)
    print(f"peak memory of the process: {peak():.2f} GiB with these alone,", flush=True)
    expected_losses, expected = plain(o.arch, o.steps, o.batch, o.size)
    print(f"  {peak():.2f} GiB after the rival (double precision)")
    loss = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(losses, expected_losses, strict=True))
    apart = ((a - b).abs().max() / b.abs().max().clamp(min=1e-12) for a, b in zip(found, expected, strict=True))
    weight = max(ratio.item() for ratio in apart)
    print(f"{o.steps} steps, losses {losses[0]:.4f} to {losses[-1]:.4f}: apart by {loss:.1e}, weights by {weight:.1e}")
    met = per_weight <= GOAL and max(loss, weight) <= TOLERANCE
    print(f"at most {GOAL:g} floats a weight, {TOLERANCE:g} over {o.steps} steps: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
