"""Heads by plan, the key queue, the momentum copy."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lowbit.errors import InputError
from lowbit.losses.queue import KeyQueue
from lowbit.models.heads import HEADS, build_heads, projector_like
from lowbit.models.momentum import momentum_copy, update_momentum_


def kinds(head: nn.Module) -> str:
    short = {"Linear": "L", "BatchNorm1d": "B", "ReLU": "R"}
    return "".join(short[type(part).__name__] for part in head.children())


@pytest.mark.parametrize("kind", HEADS)
def test_shapes_and_layers(kind: str) -> None:
    heads = build_heads(HEADS[kind], features=12, dim=8, hidden=5)
    x = torch.randn(4, 12)
    z = heads.projector(x)
    assert z.shape == (4, 8)
    contrastive = "MoCo" in kind or "SimCLR" in kind
    assert kinds(heads.projector) == ("LRL" if contrastive else "LBRLBRL" if kind == "BYOL" else "LBRLBRLB")
    assert heads.projector[0].out_features == (12 if "SimSiam" in kind else 5)
    if contrastive:
        assert heads.predictor is None
    else:
        assert heads.predictor is not None and kinds(heads.predictor) == "LBRL" and heads.predictor(z).shape == (4, 8)
        assert heads.predictor[0].out_features == 5 and heads.predictor[0].bias is None


@pytest.mark.parametrize("kind", HEADS)
def test_a_projector_like_another(kind: str) -> None:
    one = build_heads(HEADS[kind], features=12, dim=8, hidden=5).projector
    state = one.state_dict()
    other = projector_like(state)
    assert kinds(other) == kinds(one)
    other.load_state_dict(state)
    assert projector_like({key: value for key, value in state.items() if key != "0.bias"})[0].bias is None


def test_projectors_of_others() -> None:
    """MoCo v3's, whose last layer has no bias; files without batch norm's statistics; layers of other kinds."""
    parts = (nn.Linear(12, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 8, bias=False))
    state = nn.Sequential(*parts, nn.BatchNorm1d(8, affine=False)).state_dict()
    other = projector_like(state)
    other.load_state_dict(state)
    assert kinds(other) == "LBRLB"
    bare = {key: value for key, value in state.items() if key.endswith(("weight", "bias"))}
    assert kinds(projector_like(bare)) == "LBRL"
    one = torch.ones(1)
    for wrong in ({}, {"weight": one}, {"0.other": one}, {"0.weight": one[0]}, {"999.weight": one}):
        with pytest.raises(InputError, match="no projector"):
            projector_like(wrong)


def test_output_bn_wins_over_the_plan() -> None:
    plan = HEADS["BYOL"]
    assert kinds(build_heads(plan, 12, 8, 5, output_bn=True).projector) == "LBRLBRLB"
    assert kinds(build_heads(HEADS["SimSiam"], 12, 8, 5, output_bn=False).projector) == "LBRLBRL"
    assert kinds(build_heads(replace(plan, output_bn=True), 12, 8, 5).projector) == "LBRLBRLB"


@pytest.mark.parametrize("bias", [(True, False), (True, True), None])
def test_biases_of_hidden_layers_are_chosen(bias: tuple[bool, bool] | None) -> None:
    """(Slimmable nets have one in the layer whose input is sliced.)"""
    made = build_heads(replace(HEADS["BYOL"], bias=bias), 12, 8, 5).projector
    assert (made[0].bias is not None, made[3].bias is not None) == (bias or (False, False))
    assert made[6].bias is not None and made(torch.randn(4, 12)).shape == (4, 8)


def test_no_mlp() -> None:
    assert kinds(build_heads(HEADS["MoCo"], 12, 8, 5, mlp=False).projector) == "L"
    assert kinds(build_heads(HEADS["BYOL"], 12, 8, 5, mlp=False).projector) == "LBRLBRL"


def test_the_queue_holds_the_last_keys_and_wraps() -> None:
    queue = KeyQueue(3, 5, torch.Generator().manual_seed(0))
    start = queue.queue.clone()
    assert torch.allclose(start.norm(dim=0), torch.ones(5)) and queue.queue.shape == (3, 5)
    keys = F.normalize(torch.randn(8, 3), dim=-1)
    queue.enqueue_(keys[:2])
    assert torch.equal(queue.queue[:, 2:], start[:, 2:]) and torch.equal(queue.queue[:, :2], keys[:2].T)
    queue.enqueue_(keys[2:6])
    assert queue.queue_ptr.tolist() == [1]
    assert torch.equal(queue.queue, torch.stack([keys[5], keys[1], keys[2], keys[3], keys[4]]).T)
    with pytest.raises(InputError, match="a queue of 5 keys is shorter than the batch of 6"):
        queue.enqueue_(keys[:6])
    assert list(queue.state_dict()) == ["queue", "queue_ptr"]


def test_the_copy_follows_parameters_alone() -> None:
    source = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    source[0].bias.requires_grad_(False)
    copy = momentum_copy(source)
    assert not any(p.requires_grad for p in copy.parameters()) and source[0].weight.requires_grad
    before = {name: p.clone() for name, p in copy.named_parameters()}
    with torch.no_grad():
        for p in source.parameters():
            p.add_(1)
    source(torch.randn(9, 3))
    update_momentum_(copy, source, 0.9)
    for name, p in source.named_parameters():
        expected = 0.9 * before[name] + 0.1 * p.detach()
        assert torch.allclose(dict(copy.named_parameters())[name], expected, atol=1e-6)
    assert not copy[1].running_mean.any() and source[1].running_mean.any()
