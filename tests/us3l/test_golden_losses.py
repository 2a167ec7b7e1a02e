"""Losses against recorded values and gradients of the original program."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit.losses.contrastive import crossed_nt_xent, nt_xent
from lowbit.losses.cosine import SiameseLoss, cosine_loss, squared_distance_loss
from lowbit.losses.distillation import crossed_mse, similarity_distillation
from lowbit.losses.queue import KeyQueue
from us3l.losses import FeatureDistillation, pooled_cosine

Arrays = dict[str, Tensor]


@pytest.fixture(scope="module")
def rec(golden: Callable[[str], Path]) -> Iterator[Arrays]:
    with np.load(golden("us3l") / "losses.npz") as arrays:
        yield {name: torch.as_tensor(arrays[name]) for name in arrays.files}


def leaf(x: Tensor) -> Tensor:
    return x.double().requires_grad_()


def close(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None and torch.allclose(ours, theirs.double(), rtol=0, atol=1e-7)


LOSSES: dict[str, SiameseLoss] = {
    "cosine": cosine_loss,
    "infonce_v2": lambda p, z: nt_xent(*p, 0.5),
    "infonce_v2_distill": partial(crossed_nt_xent, temperature=0.5),
    "mse_plain": crossed_mse,
    # theirs pushes both views apart; ours is 4 - 2 (cos + cos), which attracts
    "cosine_v2_repelling": lambda p, z: (4 - squared_distance_loss(p, z)) / 2,
}


def check_two_views(rec: Arrays, name: str, function: SiameseLoss) -> None:
    p1, p2, z1, z2 = (leaf(rec[f"emb/{key}"]) for key in ("p1", "p2", "z1", "z2"))
    loss = function((p1, p2), (z1, z2))
    assert loss.item() == pytest.approx(rec[f"{name}/value"].item(), abs=1e-6)
    loss.backward()
    close(p1.grad, rec[f"{name}/g_p1"])
    close(p2.grad, rec[f"{name}/g_p2"])
    assert z1.grad is None and z2.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_two_views(rec: Arrays, name: str) -> None:
    check_two_views(rec, name, LOSSES[name])


def test_other_temperatures(rec: Arrays) -> None:
    found = [key.removesuffix("/value") for key in rec if re.fullmatch(r"infonce_v2_distill_T[\d.]+/value", key)]
    assert found
    for name in found:
        temperature = float(name.rpartition("_T")[2])
        check_two_views(rec, name, lambda p, z, t=temperature: crossed_nt_xent(p, z, t))


@pytest.mark.parametrize(("name", "loss"), [("mse_maps", crossed_mse), ("cosine_maps", pooled_cosine)])
def test_losses_of_feature_maps(rec: Arrays, name: str, loss: SiameseLoss) -> None:
    """Lifts of the identity leave the maps as they are; a weight of 1."""
    layers = sorted({key.rpartition("_")[2] for key in rec if key.startswith("fmap/s1_")})
    maps = {s: {la: [leaf(rec[f"fmap/{s}{view}_{la}"]) for view in (1, 2)] for la in layers} for s in "st"}
    features = FeatureDistillation(layers, [maps["t"][la][0].shape[1] for la in layers], loss, 1.0).double()
    assert len(layers) > 1
    for lift in features.children():
        torch.nn.init.dirac_(lift.weight)
    value = features(maps["s"], maps["t"])
    assert value.item() == pytest.approx(rec[f"{name}/value"].item(), abs=1e-6)
    value.backward()
    for la, pair in maps["s"].items():
        for view, x in enumerate(pair, 1):
            close(x.grad, rec[f"{name}/g_s{view}_{la}"])
    assert all(x.grad is None for pair in maps["t"].values() for x in pair)


def test_a_lift_takes_the_leading_channels(rec: Arrays) -> None:
    features = FeatureDistillation(("a.b",), (8,), crossed_mse, 3.0)
    assert list(features.state_dict()) == ["a_b.weight"], "the authors' name"
    narrow, wide = ([torch.randn(2, c, 3, 3) for _ in range(2)] for c in (5, 8))
    weight = features.state_dict()["a_b.weight"]
    lifted = [torch.einsum("oi,bihw->bohw", weight[:, :5, 0, 0], x) for x in narrow]
    expected = 3 * crossed_mse((lifted[0], lifted[1]), (wide[0], wide[1]))
    assert torch.allclose(features({"a.b": narrow}, {"a.b": wide}), expected)


def test_seed(rec: Arrays) -> None:
    runs = sorted({key.rpartition("/")[0] for key in rec if key.startswith("seed/Ts")})
    assert len(runs) > 1
    for run in runs:
        match = re.fullmatch(r"seed/Ts([\d.e-]+)_Tt([\d.e-]+)", run)
        assert match is not None
        ours, theirs = map(float, match.groups())
        keys = KeyQueue(*rec["seed/queue"].shape, torch.Generator())
        keys.load_state_dict({"queue": rec["seed/queue"], "queue_ptr": torch.zeros(1, dtype=torch.int64)})
        keys.double()
        for step, expected in enumerate(rec[f"{run}/values"].tolist()):
            student = leaf(rec["seed/student"][step])
            teacher = F.normalize(rec["seed/teacher"][step].double(), dim=1)
            loss, _ = similarity_distillation(F.normalize(student, dim=1), teacher, keys.queue, ours, theirs)
            assert loss.item() == pytest.approx(expected, abs=2e-6)
            loss.backward()
            if step == 0:
                close(student.grad, rec[f"{run}/g_student"])
            keys.enqueue_(teacher)
        close(keys.queue, rec[f"{run}/queue_after"])
        assert keys.queue_ptr.tolist() == rec[f"{run}/ptr_after"].tolist()
