"""What a fork of the server does for the tests of the start: the same on two ranks, one of which is disturbed."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from test_initialize import X, quantized

from lowbit.quant.initialize import initialize_
from lowbit.quant.learned_layers import learned_layers


def child(settings: Mapping[str, Any]) -> None:
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo")
    net = quantized("ewgs", start=False)
    if rank == 1:  # as another kind of processor might
        first = next(iter(learned_layers(net).values()))
        first.register_forward_hook(lambda module, args, out: out * (1 + 1e-5))
    initialize_(net, [X])
    torch.save(net.state_dict(), Path(settings["folder"]) / f"{rank}.pt")
    dist.destroy_process_group()
