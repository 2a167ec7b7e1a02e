"""Losses and heads alone against the original program: recorded predictions and targets give the recorded losses."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lowbit.losses.contrastive import info_nce, nt_xent
from lowbit.losses.cosine import cosine_loss
from lowbit.losses.queue import KeyQueue
from lowbit.models.cifar_resnet_wide import BasicBlock, WideCifarResNet
from lowbit.models.create import create_model
from lowbit.models.heads import build_heads
from ssql.bit_policy import derive_policy
from ssql.methods import plan_of


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_siamese_losses(recorded: Any, method: str) -> None:
    rec = recorded["ssl_tiny"]
    runs = [key.removesuffix("_pred") for key in rec if method in key and key.endswith("_pred")]
    assert len(runs) >= 3
    for run in runs:
        p, (z1, z2) = rec[f"{run}_pred"], rec[f"{run}_target"].unbind()
        branches = [cosine_loss((p[i], p[i + 1]), (z1, z2)) for i in range(0, len(p), 2)]  # float, then quantized
        loss = torch.stack(branches).mean()
        assert loss.item() == pytest.approx(rec[f"{run}_losses"][0].item(), abs=3e-7), run


def test_nt_xent(recorded: Any) -> None:
    rec, temperature = recorded["ssl_tiny"], recorded.settings["temperature"]["simclr"]
    loss = nt_xent(rec["tiny_mix_simclr_pred"], rec["tiny_mix_simclr_target"], temperature)
    assert loss.item() == pytest.approx(rec["tiny_mix_simclr_losses"][0].item(), abs=1e-6)


def test_info_nce(recorded: Any) -> None:
    rec = recorded["ssl_tiny"]
    assert info_nce(rec["tiny_mix_moco_pred"]).item() == pytest.approx(rec["tiny_mix_moco_losses"][0].item(), abs=1e-6)
    run = next(key.removesuffix("_pred") for key in rec if "ssql_moco" in key and key.endswith("_pred"))
    both = torch.stack([info_nce(logits) for logits in rec[f"{run}_pred"]]).mean()
    assert both.item() == pytest.approx(rec[f"{run}_losses"][0].item(), abs=1e-6)


def test_the_queue_starts_and_moves_as_recorded(recorded: Any) -> None:
    rec, dims = recorded["ssl_tiny"], recorded.settings["ssl_dims"]["tiny"]
    order = recorded.json("keys")["ssl_fill_order"]["tiny"]["MoCo"]
    start = {k: v for k, v in recorded.fill([tuple(row) for row in order], "mix") if k.startswith("queue")}
    queue = KeyQueue(dims["DIM"], dims["MOCO_K"], torch.Generator())
    queue.load_state_dict({"queue": start["queue"], "queue_ptr": start["queue_ptr"].long()})
    after = rec["tiny_mix_moco_queue_step1"]
    n = int(rec["tiny_mix_moco_queue_ptr_step1"])
    assert torch.equal(queue.queue[:, n:], after[:, n:]), "what was not overwritten is the fill"
    queue.enqueue_(F.normalize(after[:, :n].T, dim=-1))
    assert torch.allclose(queue.queue, after, atol=1e-6) and queue.queue_ptr.tolist() == [n]


@pytest.mark.parametrize("layout", ["tiny", "r18"])
def test_heads_have_the_recorded_keys(recorded: Any, layout: str) -> None:
    orders, dims = recorded.json("keys")["ssl_fill_order"][layout], recorded.settings["ssl_dims"][layout]
    features = 16 if layout == "tiny" else 512
    for kind, order in orders.items():
        heads = build_heads(plan_of(kind), features, dims["DIM"], dims["HIDDEN_DIM"])
        parts = {"encoder_q.fc.": heads.projector, "predictor.": heads.predictor}
        ours = [
            [prefix + key, list(value.shape)]
            for prefix, head in parts.items()
            if head is not None
            for key, value in head.state_dict().items()
        ]
        assert ours == [row for row in order if row[0].startswith(tuple(parts))], kind
        frozen = [name for name, p in heads.projector.named_parameters() if not p.requires_grad]
        silent = recorded.json("ssl_steps")["params_without_grad_outside_encoder_k"][kind]
        assert ["encoder_q.fc." + name for name in frozen] == silent


@pytest.mark.parametrize(("arch", "hidden", "millions"), [("cifar_resnet50", 2048, 44.49), ("resnet50", 512, 38.20)])
def test_parameters_of_the_papers_nets(arch: str, hidden: int, millions: float) -> None:
    with torch.device("meta"):
        net = create_model(arch, num_classes=0)
        heads = build_heads(plan_of("SSQL_SimSiam"), net.num_features, 2048, hidden)
    count = sum(p.numel() for part in (net, *heads) if part is not None for p in part.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.005)


def test_the_policy_of_an_encoder_with_its_projector(recorded: Any) -> None:
    """Tiny encoder: the projector's weights at 8, its activations float, as recorded."""
    for run, bits in recorded.json("ssl_steps")["bits"]["tiny"].items():
        net = WideCifarResNet(BasicBlock, (1, 1), widths=(8, 16), num_classes=0)
        net.fc = build_heads(plan_of("SSQL_MoCo" if "moco" in run else "SSQL_SimSiam"), 16, 16, 16).projector
        inner = bits["layer1.0.conv1"]
        table = derive_policy(net, (3, 8, 8)).table(inner["w"], inner["a"])
        assert {n: {k: v for k, v in row.items() if v is not None} for n, row in table.items()} == bits
