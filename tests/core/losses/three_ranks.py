"""Three processes against one: a program for test_ranks.py, not a test itself. Usage: three_ranks.py FOLDER"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.errors import InputError
from lowbit.losses.contrastive import crossed_nt_xent, nt_xent
from lowbit.losses.queue import KeyQueue
from lowbit.losses.ranks import Ranks, Shuffle, gather_rows, ranks_of
from lowbit.quant.bitwidths import activations, set_mode_
from lowbit.quant.calibrate import calibrate_, sync_ranges_, uncalibrated
from lowbit.quant.observers import ObservedActivation, ObserverConfig

WORLD, N = 3, 7
SIZES = (2, 2, 3)


def loss_of(weight: Tensor, views: Tensor, layout: Ranks | None) -> Tensor:
    z = views @ weight
    return nt_xent(z[0], z[1], 0.5, layout) + crossed_nt_xent((z[0], z[1]), (z[2], z[3]), 0.5, layout)


def check(rank: int) -> None:
    make = torch.Generator().manual_seed(0)
    views = torch.randn(4, N, 5, dtype=torch.float64, generator=make)
    weight = torch.randn(5, 4, dtype=torch.float64, generator=make)
    start = sum(SIZES[:rank])
    own, share = slice(start, start + SIZES[rank]), SIZES[rank] * WORLD / N
    layout = ranks_of(SIZES[rank], share)
    assert layout == Ranks(SIZES, rank) and layout.start == start

    assert torch.equal(gather_rows(views[0, own], layout), views[0])
    one, here = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    loss_of(one, views, None).backward()
    (loss_of(here, views[:, own], layout) * share).backward()
    assert one.grad is not None and here.grad is not None
    dist.all_reduce(here.grad)
    assert torch.allclose(here.grad / WORLD, one.grad, atol=1e-12), "the mean of gradients, as DDP takes it"

    keys = F.normalize(views[0], dim=-1)
    single, shared = (KeyQueue(5, 10, torch.Generator().manual_seed(1)) for _ in range(2))
    for queue, arguments in ((single, (keys,)), (shared, (keys[own], layout))):
        queue.enqueue_(*arguments)
        queue.enqueue_(*arguments)
    assert torch.equal(single.queue, shared.queue) and torch.equal(single.queue_ptr, shared.queue_ptr)

    shuffle = Shuffle(layout, torch.Generator().manual_seed(2))
    moved = shuffle.here(views[0, own])
    assert torch.equal(moved, views[0][shuffle.order][own]) and not torch.equal(moved, views[0, own])
    assert torch.equal(shuffle.back(moved * 2), views[0, own] * 2)

    net = nn.Sequential(ObservedActivation("relu", ObserverConfig()), ObservedActivation("gelu", ObserverConfig()))
    set_mode_(net, "observe")(torch.randn(9, generator=torch.Generator().manual_seed(rank)))
    ends = [(float(a.observer.low), float(a.observer.high)) for a in activations(net).values()]
    everywhere: list[list[tuple[float, float]]] = [[] for _ in range(WORLD)]
    dist.all_gather_object(everywhere, ends)
    sync_ranges_(net)
    for number, activation in enumerate(activations(net).values()):
        assert float(activation.observer.low) == min(there[number][0] for there in everywhere)
        assert float(activation.observer.high) == max(there[number][1] for there in everywhere)

    pictures = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))[: 0 if rank == 1 else 4]
    calibrate_(net, [pictures])  # the second rank has no picture, and the others do not wait for it in vain
    ends = [(float(a.observer.low), float(a.observer.high)) for a in activations(net).values()]
    dist.all_gather_object(everywhere, ends)
    assert not uncalibrated(net) and everywhere[0] == everywhere[1] == everywhere[2]
    try:
        calibrate_(net, [pictures[:0]])
    except InputError:
        return
    raise AssertionError("no rank had a picture")


def main(folder: Path) -> int:
    torch.set_num_threads(1)
    children = []
    for rank in range(WORLD):
        child = os.fork()
        if not child:
            try:
                dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=WORLD)
                check(rank)
                dist.destroy_process_group()
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            os._exit(code)
        children.append(child)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
