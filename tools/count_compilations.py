"""How often a backbone is compiled while all 35 pairs of bits are run through it (SSQL's ranges: w 2 to 8, a 4 to 8).

    python tools/count_compilations.py [--net cifar_resnet18] [--batch 2] [--size 32]

Each pair is a step as SSQL has it: a float forward that watches the ranges, then a quantized one, and a backward
through both, compiled with `fullgraph=True`. `torch._dynamo.testing.CompileCounter` counts the graphs. Ends with 1 if
there are more than 2 (one a mode), or if the pairs do not all give different outputs (bits without effect).
"""

import argparse

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from lowbit.models.create import create_model
from lowbit.quant.bitwidths import in_mode, quantize_uniform_, set_bits_
from lowbit.quant.calibrate import reset_ranges_
from ssql.bit_policy import A_RANGE, W_RANGE, derive_policy

BAR = 2


def main() -> int:
    """Run all pairs, print the count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--net", default="cifar_resnet18")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--size", type=int, default=32)
    o = parser.parse_args()
    torch.manual_seed(0)
    net = create_model(o.net, num_classes=0)
    quantize_uniform_(net, derive_policy(net, (3, o.size, o.size)))
    counter = CompileCounter()
    compiled = torch.compile(net, backend=counter, fullgraph=True, dynamic=False)
    x = torch.randn(o.batch, 3, o.size, o.size)
    outputs: list[Tensor] = []
    for w in range(*W_RANGE):
        for a in range(*A_RANGE):
            reset_ranges_(net)
            with in_mode(net, "observe"):
                z = compiled(x)
            set_bits_(net, torch.tensor(w), torch.tensor(a))
            with in_mode(net, "quantized"):
                q = compiled(x)
            (q - z).square().mean().backward()
            outputs.append(q.detach())
    different = len({tuple(q.flatten().tolist()) for q in outputs})
    met = counter.frame_count <= BAR and different == len(outputs)
    print("| net | pairs of bits | different outputs | compilations | bar |")
    print("|---|---|---|---|---|")
    print(f"| {o.net} | {len(outputs)} | {different} | {counter.frame_count} | {BAR}: {'met' if met else 'MISSED'} |")
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
