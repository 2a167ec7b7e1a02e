"""Frozen features: in the set's order for every split, from any net, without labels, until a stop."""

from typing import Any

import pytest
import timm
import torch
from accelerate import Accelerator
from torch import nn

from lowbit.data.batch import Batch
from lowbit.errors import InputError, Stopped
from lowbit.evaluate.features import extract, outputs, pooled
from lowbit.models.create import create_model
from lowbit.train import signals


@pytest.mark.parametrize("size", [1, 7, 23, 100])
def test_rows_come_in_order_for_every_split(accelerator: Accelerator, cut: Any, size: int) -> None:
    x, y = torch.randn(23, 5), torch.arange(23) % 3
    found = extract(nn.Identity(), cut(x, y, size), accelerator)
    assert torch.equal(found.x, x)
    assert found.label is not None and torch.equal(found.label, y)


def test_the_index_decides_about_the_order(accelerator: Accelerator) -> None:
    """As from several processes, and with a picture left out."""
    x = torch.randn(5, 3)
    batches = [Batch((x[where],), torch.tensor(where), torch.tensor(where)) for where in ([4, 1], [0, 3])]
    found = extract(nn.Identity(), batches, accelerator)
    assert torch.equal(found.x, x[[0, 1, 3, 4]])
    assert found.label is not None and found.label.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize(
    "name", ["cifar_resnet8_1x1", "efficientnet_b0", "mobilenetv3_small_050", "vit_tiny_patch16_224"]
)
def test_pooled_is_what_a_timm_net_gives_its_classifier(name: str) -> None:
    torch.manual_seed(0)
    side = 224 if name.startswith("vit") else 32
    net = create_model(name, num_classes=7).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        found = pooled(net, x)
        torch.testing.assert_close(net.get_classifier()(found), net(x))


def test_pooled_passes_a_projector_by_and_outputs_does_not(accelerator: Accelerator, cut: Any) -> None:
    net = timm.create_model("resnet18", num_classes=4)
    net.fc = nn.Sequential(nn.Linear(512, 6), nn.BatchNorm1d(6))
    batches = cut(torch.randn(3, 3, 32, 32), None, 2)
    assert extract(net, batches, accelerator).x.shape == (3, 512)
    assert extract(net, batches, accelerator, outputs).x.shape == (3, 6)


def test_modes_come_back_and_nothing_is_learned(accelerator: Accelerator, cut: Any) -> None:
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout())
    net[1].eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    x = torch.randn(6, 3)
    found = extract(net, cut(x, None, 4), accelerator)
    assert [m.training for m in net.modules()] == [True, True, False]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert found.label is None and not found.x.requires_grad
    torch.testing.assert_close(found.x, x / (1 + 1e-5) ** 0.5)


@pytest.mark.parametrize(
    ("of_net", "of_features"),
    [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_pictures_take_the_nets_precision(
    accelerator: Accelerator, cut: Any, of_net: torch.dtype, of_features: torch.dtype
) -> None:
    net = nn.Linear(3, 2, dtype=of_net)
    x = torch.randn(5, 3)
    found = extract(net, cut(x, None, 2), accelerator).x
    assert found.dtype == of_features
    torch.testing.assert_close(found, net(x.to(of_net)).detach().to(of_features), rtol=1e-2, atol=1e-2)


def test_a_stop_is_seen_inside(accelerator: Accelerator, cut: Any) -> None:
    net = nn.Linear(4, 3)
    try:
        with pytest.raises(Stopped):
            extract(net, cut(torch.randn(9, 4), None, 2, signals.request_stop), accelerator)
    finally:
        signals.clear()
    assert net.training


def test_an_empty_set_and_pictures_that_were_not_pooled(accelerator: Accelerator, cut: Any) -> None:
    with pytest.raises(InputError, match="no picture"):
        extract(nn.Identity(), cut(torch.randn(0, 4), None, 2), accelerator)
    with pytest.raises(ValueError, match=r"\(B, D\)"):
        extract(nn.Identity(), cut(torch.randn(3, 4, 2), None, 2), accelerator)
