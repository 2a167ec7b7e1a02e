"""Losses against recorded values and gradients of the original program."""

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
from us3l.feature_distillation import FeatureDistillation, pooled_cosine

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
    "infonce_v2_distill_T0.2": partial(crossed_nt_xent, temperature=0.2),
    "mse_plain": crossed_mse,
}


@pytest.mark.parametrize("name", [*LOSSES, "cosine_v2_repelling"])
def test_losses_of_two_views(rec: Arrays, name: str) -> None:
    p1, p2, z1, z2 = (leaf(rec[f"emb/{key}"]) for key in ("p1", "p2", "z1", "z2"))
    if name == "cosine_v2_repelling":  # theirs pushes both apart; ours is 4 - 2 (cos + cos), which attracts
        loss = (4 - squared_distance_loss((p1, p2), (z1, z2))) / 2
    else:
        loss = LOSSES[name]((p1, p2), (z1, z2))
    assert loss.item() == pytest.approx(rec[f"{name}/value"].item(), abs=1e-6)
    loss.backward()
    close(p1.grad, rec[f"{name}/g_p1"])
    close(p2.grad, rec[f"{name}/g_p2"])
    assert z1.grad is None and z2.grad is None


@pytest.mark.parametrize(("name", "loss"), [("mse_maps", crossed_mse), ("cosine_maps", pooled_cosine)])
def test_losses_of_feature_maps(rec: Arrays, name: str, loss: SiameseLoss) -> None:
    """Lifts of the identity leave the maps as they are; a weight of 1."""
    maps = {
        side: {la: [leaf(rec[f"fmap/{side}{view}_{la}"]) for view in (1, 2)] for la in ("l2", "l3")} for side in "st"
    }
    features = FeatureDistillation(("l2", "l3"), (6, 8), loss, 1.0).double()
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


@pytest.mark.parametrize("temperatures", [(0.5, 0.0001), (0.2, 0.05)])
def test_seed(rec: Arrays, temperatures: tuple[float, float]) -> None:
    run = f"seed/Ts{temperatures[0]}_Tt{temperatures[1]}"
    keys = KeyQueue(16, 32, torch.Generator())
    keys.load_state_dict({"queue": rec["seed/queue"], "queue_ptr": torch.zeros(1, dtype=torch.int64)})
    keys.double()
    for step, expected in enumerate(rec[f"{run}/values"].tolist()):
        student = leaf(rec["seed/student"][step])
        teacher = F.normalize(rec["seed/teacher"][step].double(), dim=1)
        loss, _ = similarity_distillation(F.normalize(student, dim=1), teacher, keys.queue, *temperatures)
        assert loss.item() == pytest.approx(expected, abs=2e-6)
        loss.backward()
        if step == 0:
            close(student.grad, rec[f"{run}/g_student"])
        keys.enqueue_(teacher)
    close(keys.queue, rec[f"{run}/queue_after"])
    assert keys.queue_ptr.tolist() == rec[f"{run}/ptr_after"].tolist()
