"""Weighted k-NN: against scikit-learn, ties, chunks, wrong settings, the digits."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.data.pictures import FolderPictures
from lowbit.data.recipe import CIFAR10, plain
from lowbit.errors import InputError, Stopped
from lowbit.evaluate import knn as module
from lowbit.evaluate.features import Features
from lowbit.evaluate.knn import check_neighbours, knn, knn_probe, nearest, rank_classes
from lowbit.models.create import create_model
from lowbit.train import signals
from lowbit.train.protocol import Clock, Objective


def reference(bank: Features, queries: Features, k: int, temperature: float) -> KNeighborsClassifier:
    """The formula of the paper through scikit-learn's own search."""

    def weights(distance: np.ndarray) -> np.ndarray:
        return np.exp((1 - distance) / temperature)

    classifier = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute")
    return classifier.fit(bank.x.numpy(), bank.label.numpy())  # type: ignore[union-attr]


@pytest.mark.parametrize("temperature", [0.07, 0.5, 20.0])
@pytest.mark.parametrize("k", [1, 7, 40, 120])
def test_equals_scikit_learn(
    accelerator: Accelerator, clouds: tuple[Features, Features], k: int, temperature: float
) -> None:
    bank, queries = clouds
    assert queries.label is not None
    other = reference(bank, queries, k, temperature)
    predicted = torch.from_numpy(other.predict(queries.x.numpy()))
    found = knn(bank, queries, accelerator, k=k, temperature=temperature)
    assert found["knn_top1"] == pytest.approx(100 * (predicted == queries.label).double().mean().item(), abs=1e-12)
    assert found["knn_k"] == k and found["knn_temperature"] == temperature

    shares = torch.from_numpy(other.predict_proba(queries.x.numpy()))
    voted_for = (shares.gather(1, queries.label[:, None]) > 0).double().mean().item()
    assert found["knn_top5"] == pytest.approx(100 * voted_for, abs=1e-12)  # of 4 classes
    unit = [torch.nn.functional.normalize(f.x, dim=1) for f in (queries, bank)]
    assert bank.label is not None
    ranked, voted = rank_classes(unit[0] @ unit[1].T, bank.label, k, temperature, 4)
    assert torch.equal(voted, (shares > 0).sum(1))
    falling = shares.gather(1, ranked)
    assert (falling[:, 1:] <= falling[:, :-1] + 1e-12).all()
    assert torch.equal(ranked[:, 0], predicted)


def slow_rank(similarity: list[float], label: list[int], k: int, temperature: float, classes: int) -> list[int]:
    near = sorted(range(len(similarity)), key=lambda i: (-similarity[i], i))[:k]
    votes = [math.fsum(math.exp(similarity[i] / temperature) for i in near if label[i] == c) for c in range(classes)]
    return sorted(range(classes), key=lambda c: (-votes[c], c))


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_ties_go_to_the_earlier_row_and_the_smaller_class(k: int) -> None:
    generator = torch.Generator().manual_seed(k)
    similarity = torch.randint(-2, 3, (50, 12), generator=generator).double() / 2  # five values: ties everywhere
    label = torch.randint(5, (12,), generator=generator)
    found, _ = rank_classes(similarity, label, k, 0.5, 5)
    assert found.tolist() == [slow_rank(row, label.tolist(), k, 0.5, 5) for row in similarity.tolist()]


def test_nearest_takes_the_first_of_equals() -> None:
    similarity = torch.tensor([[0.5, 1.0, 0.5, 0.5], [0.0, 0.0, 0.0, 0.0]])
    assert nearest(similarity, 2).tolist() == [[0, 1], [0, 1]]
    assert nearest(similarity, 4).tolist() == [[0, 1, 2, 3], [0, 1, 2, 3]]


def test_classes_without_votes_keep_their_order() -> None:
    """Of several hundred: so many are no longer sorted by insertion, which would be stable anyhow."""
    found, voted = rank_classes(torch.tensor([[0.1, 0.9]]), torch.tensor([3, 250]), 1, 0.1, 300)
    assert found.tolist() == [[250, *range(250), *range(251, 300)]] and voted.tolist() == [1]


def test_a_class_without_a_vote_is_no_answer(accelerator: Accelerator) -> None:
    """Whose only neighbour is of a wrong class, nothing is right about, however many classes there are."""
    bank = Features(torch.eye(5), torch.arange(5))
    wrong = Features(torch.eye(5), torch.arange(5).roll(1))
    assert {n: knn(bank, wrong, accelerator, k=1)[f"knn_top{n}"] for n in (1, 5)} == {1: 0, 5: 0}
    assert knn(bank, Features(torch.eye(5), torch.arange(5)), accelerator, k=1)["knn_top5"] == 100
    assert knn(bank, wrong, accelerator, k=5)["knn_top5"] == 100  # all five vote
    few = Features(torch.eye(8)[:, :5] + torch.eye(8).flip(1)[:, :5], torch.tensor([0, 0, 1, 1, 2, 2, 7, 7]))
    for k in range(1, 9):
        seen = {
            c for row in (few.x[:1] @ F.normalize(few.x, dim=1).T) for c in few.label[nearest(row[None], k)[0]].tolist()
        }  # type: ignore[index]
        for c in range(8):
            asked = Features(few.x[:1], torch.tensor([c]))
            assert (knn(few, asked, accelerator, k=k)["knn_top5"] == 100) == (c in seen)


def test_a_vote_counts_however_small_it_is() -> None:
    similarity = torch.tensor([[1.0, -1.0]])
    ranked, voted = rank_classes(similarity, torch.tensor([4, 2]), 2, 1e-3, 6)
    assert ranked[0, :2].tolist() == [4, 2] and voted.tolist() == [2]  # exp(-2000) is 0


def test_top5_counts_five_classes(accelerator: Accelerator) -> None:
    """Class c lies nearer to the query the smaller c is, so that the query's class is found at place c."""
    angle = torch.linspace(0, 1, 8, dtype=torch.float64)
    bank = Features(torch.stack([angle.cos(), angle.sin()], 1), torch.arange(8))
    query = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    found = [knn(bank, Features(query, torch.tensor([c])), accelerator, k=8) for c in range(8)]
    assert [f["knn_top1"] for f in found] == [100] + [0] * 7
    assert [f["knn_top5"] for f in found] == [100] * 5 + [0] * 3


@pytest.mark.parametrize("at_once", [1, 700, 10**9])
def test_chunks_change_nothing(
    accelerator: Accelerator, clouds: tuple[Features, Features], monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    expected = knn(*clouds, accelerator, k=9)
    monkeypatch.setattr(module, "AT_ONCE", at_once)
    assert knn(*clouds, accelerator, k=9) == expected


def test_lengths_do_not_matter(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    bank, queries = clouds
    longer = bank._replace(x=bank.x * torch.linspace(0.1, 9, len(bank.x), dtype=torch.float64)[:, None])
    assert knn(longer, queries, accelerator, k=9) == knn(bank, queries, accelerator, k=9)


def test_dead_features_are_no_fault(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    """All zero, as of a net that 2 bits killed: the first k rows vote."""
    bank, queries = (f._replace(x=torch.zeros_like(f.x)) for f in clouds)
    assert knn(bank, queries, accelerator, k=1)["knn_top1"] == pytest.approx(100 * 16 / 61)  # class 0 of bank row 0


@pytest.mark.parametrize(("k", "temperature"), [(0, 0.1), (121, 0.1), (5, 0.0), (5, -1.0), (5, math.nan)])
def test_wrong_settings_are_named(
    accelerator: Accelerator, clouds: tuple[Features, Features], k: int, temperature: float
) -> None:
    with pytest.raises(InputError, match=f"{k}|{temperature}"):
        check_neighbours(k, temperature, 120)
    with pytest.raises(InputError):
        knn(*clouds, accelerator, k=k, temperature=temperature)


def test_labels_and_finite_features_are_needed(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    bank, queries = clouds
    with pytest.raises(InputError, match="labelled"):
        knn(bank._replace(label=None), queries, accelerator, k=3)
    with pytest.raises(InputError, match="finite"):
        knn(bank, queries._replace(x=queries.x / 0), accelerator, k=3)


def test_a_stop_is_seen(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    signals.request_stop()
    try:
        with pytest.raises(Stopped):
            knn(*clouds, accelerator, k=3)
    finally:
        signals.clear()


class Owner(Objective):
    def __init__(self, student: torch.nn.Module) -> None:
        super().__init__()
        self.student = student


def test_probe_on_the_digits(accelerator: Accelerator) -> None:
    """Even random weights tell digits apart; random labels they do not."""
    torch.manual_seed(0)
    objective = Owner(create_model("cifar_resnet8_1x1", num_classes=0))

    def loader(split: Any) -> EvalLoader:
        return EvalLoader(load_dataset("digits", Path(), split), plain(CIFAR10), batch_size=100)

    probe = knn_probe(lambda o: o.get_submodule("student"), loader("train"), loader("test"), accelerator, k=20, every=2)
    clock = Clock(0, 0, 4, 9, 9, 0)
    assert probe(clock, objective) == {}
    found = probe(clock._replace(epoch=1), objective)
    assert 80 < found["knn_top1"] < found["knn_top5"] <= 100
    assert objective.training


def _shuffled(label: Tensor) -> Tensor:
    return label[torch.randperm(len(label), generator=torch.Generator().manual_seed(1))]


def test_labels_without_meaning_give_chance(accelerator: Accelerator, clouds: tuple[Features, Features]) -> None:
    bank, queries = clouds
    assert bank.label is not None
    found = knn(bank._replace(label=_shuffled(bank.label)), queries, accelerator, k=5)
    assert 5 < found["knn_top1"] < 45


def test_a_probe_asks_no_more_pictures_than_can_be_read(accelerator: Accelerator, tmp_path: Path) -> None:
    for i in range(6):
        Image.new("RGB", (32, 32), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no picture")
    pictures = FolderPictures("x", ["a", "b"], sorted(tmp_path.iterdir()), torch.arange(6) % 2)
    bank = EvalLoader(pictures, plain(CIFAR10), batch_size=4, max_corrupt=0.5)
    objective = Owner(create_model("cifar_resnet8_1x1", num_classes=0))
    found = knn_probe(lambda o: o.get_submodule("student"), bank, bank, accelerator, k=6)(
        Clock(0, 0, 1, 9, 9, 0), objective
    )
    assert found["knn_k"] == 5
