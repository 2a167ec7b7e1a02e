"""Nets by their timm names."""

import pytest
import torch

from lowbit.models.create import create_model

LAST = (".bn3.weight", ".bn2.weight")


@pytest.mark.parametrize("arch", ["resnet10t", "test_resnet.r160_in1k"])
def test_the_last_batch_norm_of_a_block_starts_at_0_or_1(arch: str) -> None:
    """In the original the last of a branch is torchvision's: 1 unless asked for 0; all else is drawn alike."""
    nets = []
    for zero in (True, False):
        torch.manual_seed(0)
        nets.append(create_model(arch, zero_init_last=zero, num_classes=2).state_dict())
    zeros, ones = nets
    differ = {key for key, value in ones.items() if not torch.equal(value, zeros[key])}
    last = {f"{key.rpartition('.bn1')[0]}{LAST[0]}" for key in ones if key.startswith("layer") and ".bn1.weight" in key}
    last = {key if key in ones else key.replace(*LAST) for key in last}
    assert differ == last and len(last) == 4
    assert all(not zeros[key].any() and bool((ones[key] == 1).all()) for key in last)
    assert all(torch.equal(value, ones[key]) for key, value in zeros.items() if key not in last)


@pytest.mark.parametrize("arch", ["test_vit", "cifar_resnet8_1x1", "mobilenetv2_035"])
def test_other_nets_have_one_start(arch: str) -> None:
    nets = []
    for zero in (True, False):
        torch.manual_seed(0)
        nets.append(create_model(arch, zero_init_last=zero, num_classes=2).state_dict())
    assert all(torch.equal(value, nets[1][key]) for key, value in nets[0].items())
