"""Slimmable batch norm on two ranks (test_norm_ranks.py): one process that holds the whole batch computes the same."""

import copy

import torch
from torch import Tensor, nn

from lowbit.slim.layers import at_width
from lowbit.slim.norms import SlimBatchNorm2d, SwitchableBatchNorm2d
from lowbit.train.bn import sync_batchnorm_
from lowbit.train.process import finish, make_accelerator

WIDTHS = (1.0, 0.5, 0.25)


def check_norms() -> None:
    """Values, gradients, statistics after a step at each width; in float64, with unequal parts."""
    accelerator = make_accelerator("no", cpu=True)
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(7, 32, 3, 3, dtype=torch.float64, generator=generator) * 2 + 1
    mine = slice(0, 2) if accelerator.process_index == 0 else slice(2, 7)
    start = nn.BatchNorm2d(32).double()
    nn.init.uniform_(start.weight, generator=generator)
    for one in (SlimBatchNorm2d(copy.deepcopy(start)), SwitchableBatchNorm2d(start, WIDTHS)):
        several = sync_batchnorm_(nn.Sequential(copy.deepcopy(one)))[0]
        assert list(several.state_dict()) == list(one.state_dict())
        for width in WIDTHS:
            wanted, found = step(one, whole, width), step(several, whole[mine], width)
            for a, b in zip(wanted, found, strict=True):
                if a.shape[0] == len(whole):
                    a = a[mine]
                else:
                    torch.distributed.all_reduce(b)  # parameters: each rank has its share of the sum
                assert torch.allclose(a, b, rtol=0, atol=1e-10), (width, (a - b).abs().max())
        for name, buffer in one.named_buffers():
            assert torch.allclose(buffer.double(), several.get_buffer(name).double(), rtol=0, atol=1e-12), name
        with at_width(one, 0.5), at_width(several, 0.5):
            assert torch.allclose(one.eval()(whole[:, :16]), several.eval()(whole[:, :16]), rtol=0, atol=1e-12)
    finish(accelerator)


def step(norm: nn.Module, x: Tensor, width: float) -> list[Tensor]:
    """Output, gradients of the input and of the parameters that run."""
    with at_width(norm, width):
        x = x[:, : int(32 * width)].clone().requires_grad_()
        y = norm(x)
        parameters = list(norm.parameters())
        grads = torch.autograd.grad((y**3).sum(), [x, *parameters], allow_unused=True)
    return [y.detach(), *(g for g in grads if g is not None)]
