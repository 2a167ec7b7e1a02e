"""A sweep: its figures are those of the parts, the net is left alone, files read back, the digits."""

import csv
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from lowbit.data.batch import Batch
from lowbit.data.datasets import load_dataset
from lowbit.data.loader import EvalLoader
from lowbit.data.recipe import CIFAR10, plain
from lowbit.errors import InputError, Stopped
from lowbit.evaluate.features import Features, extract
from lowbit.evaluate.knn import knn
from lowbit.evaluate.probe import ProbeOptions, make_head, score_head, train_head_
from lowbit.evaluate.sweep import SweepOptions, Variant, sweep
from lowbit.evaluate.table import plot, side_by_side, table, write_csv, write_sweep
from lowbit.models.create import create_model
from lowbit.train import signals
from lowbit.train.bn_statistics import reestimate_batchnorm_

PROBE = ProbeOptions(lr=0.3, epochs=4, batch_size=40, milestones=(3,))
OPTIONS = SweepOptions(probe=PROBE, k=15, seed=2)


class Toy(nn.Module):
    """Six entries in, eight normalised ones out; `noise` and `width` are what variants change."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.skip_init(nn.Linear, 6, 8, dtype=torch.float64)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in self.linear.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.norm = nn.BatchNorm1d(8, dtype=torch.float64)
        self.levels: float | None = None
        self.width = 8

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        if self.levels is not None:
            x = (x * self.levels).round() / self.levels
        return torch.relu(self.norm(x))[:, : self.width]


def at(net: Toy, **settings: Any) -> Callable[[], AbstractContextManager[Any]]:
    @contextmanager
    def inside() -> Iterator[None]:
        before = {name: getattr(net, name) for name in settings}
        vars(net).update(settings)
        try:
            yield
        finally:
            vars(net).update(before)

    return inside


@pytest.fixture
def net() -> Toy:
    return Toy()


@pytest.fixture
def sets(clouds: tuple[Features, Features], cut: Any) -> tuple[Any, Any]:
    train, test = clouds
    return cut(train.x, train.label, 50), cut(test.x, test.label, 50)


def training(sets: tuple[Any, Any]) -> Callable[[], Iterator[Batch]]:
    """Another look at the training set, as augmentation gives it."""
    return lambda: (batch._replace(views=(batch.views[0] * 1.5 + 1,)) for batch in sets[0])


def test_variants_of_one_net_are_evaluated_once(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    entered: list[int] = []

    def narrow(width: int) -> Callable[[], AbstractContextManager[Any]]:
        entered.append(width)
        return at(net, width=width)()  # type: ignore[return-value]

    variants = [Variant(str(width), lambda width=width: narrow(width), key=width // 2) for width in (8, 5, 4, 2)]  # type: ignore[misc]
    rows = sweep(net, variants, *sets, accelerator, OPTIONS, reference=variants[0])
    assert entered == [8, 5, 2] and [row["variant"] for row in rows] == ["8", "5", "4", "2"]
    assert {**rows[1], "variant": "4"} == rows[2] != rows[3]


def test_k_is_at_most_the_pictures_that_can_be_read(
    accelerator: Accelerator, net: Toy, clouds: tuple[Features, Features], cut: Any
) -> None:
    """A picture of the bank that is left out does not refuse the sweep."""
    train, test = clouds
    assert train.label is not None
    bank, variant = cut(train.x[:9], train.label[:9], 5), Variant("fp", at(net))
    (row,) = sweep(
        net, [variant], bank, cut(test.x, test.label, 50), accelerator, SweepOptions(probe=PROBE), reference=variant
    )
    assert row["knn_k"] == 9


def test_rows_hold_what_the_parts_say(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    float_, coarse = Variant("fp", at(net)), Variant("coarse", at(net, levels=0.4))
    options = SweepOptions(probe=PROBE, k=15, temperature=0.2, seed=2, retrain=True)
    rows = sweep(
        net, [coarse, float_], *sets, accelerator, options, reference=float_, bn_batches=training(sets)
    )  # fmt: skip

    def heads_and_features(levels: float | None) -> tuple[nn.Linear, Features, Features]:
        net.levels = levels
        train, test = (extract(net, batches, accelerator) for batches in sets)
        net.levels = None
        head = make_head(8, 4, 2, dtype=torch.float64)
        train_head_(head, train, PROBE, accelerator, 2)
        return head, train, test

    def expected(suffix: str) -> dict[str, float]:
        carried = heads_and_features(None)[0]
        if suffix:
            reestimate_batchnorm_(net, training(sets)())
            carried = heads_and_features(None)[0]
            net.levels = 0.4
            reestimate_batchnorm_(net, training(sets)())
        own, train, test = heads_and_features(0.4)
        return {
            "probe_top1" + suffix: score_head(carried, test)["probe_top1"],
            "probe_top1_retrained" + suffix: score_head(own, test)["probe_top1"],
            "knn_top1" + suffix: knn(train, test, accelerator, k=15, temperature=0.2)["knn_top1"],
        }

    figures = {**expected(""), **expected("_bn")}
    assert len({value for name, value in figures.items()}) > 3  # they can tell figures apart
    said = {"variant": "coarse", "top1": figures["probe_top1_retrained"], "probe": "retrained"}
    assert rows[0] == {**said, **figures, "knn_k": 15, "knn_temperature": 0.2}
    assert rows[1]["variant"] == "fp" and rows[1]["probe_top1"] == rows[1]["probe_top1_retrained"]
    assert list(rows[0]) == list(rows[1])


def test_without_extras_a_row_is_short(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    reference = Variant("fp", at(net))
    (row,) = sweep(net, [Variant("coarse", at(net, levels=0.4))], *sets, accelerator, OPTIONS, reference=reference)
    assert list(row) == ["variant", "top1", "probe", "probe_top1", "knn_top1", "knn_k", "knn_temperature"]
    assert row["probe"] == "float" and row["top1"] == row["probe_top1"]


def test_a_callable_that_only_sets_is_enough(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    def set_to(levels: float | None) -> Callable[[], None]:
        return lambda: setattr(net, "levels", levels)

    plain_ = [Variant("fp", set_to(None)), Variant("coarse", set_to(0.4))]
    managed = [Variant("fp", at(net)), Variant("coarse", at(net, levels=0.4))]
    rows = [sweep(net, v, *sets, accelerator, OPTIONS, reference=v[0]) for v in (managed, plain_)]
    assert rows[0] == rows[1]
    assert net.levels == 0.4


def test_narrower_variants_share_the_probe(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    variants = [Variant(f"{width}", at(net, width=width)) for width in (8, 4, 1)]
    rows = sweep(
        net, variants, *sets, accelerator, SweepOptions(probe=PROBE, k=15, retrain=True), reference=variants[0]
    )
    assert rows[0]["probe_top1"] == rows[0]["probe_top1_retrained"] > rows[2]["probe_top1_retrained"]


@pytest.mark.parametrize("stop", [False, True])
def test_the_net_is_left_as_it_was(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any], stop: bool) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    variants = [Variant("fp", at(net)), Variant("coarse", at(net, levels=0.4))]

    def batches() -> Iterator[Batch]:
        for batch in training(sets)():
            yield batch
            if stop:
                signals.request_stop()

    try:
        sweep(net, variants, *sets, accelerator, OPTIONS, reference=variants[0], bn_batches=batches)
        assert not stop
    except Stopped:
        assert stop
    finally:
        signals.clear()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert net.levels is None and net.norm.momentum == 0.1


def test_wrong_sweeps_are_named(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any], cut: Any) -> None:
    fp = Variant("fp", at(net))
    with pytest.raises(InputError, match="once"):
        sweep(net, [fp, fp], *sets, accelerator, OPTIONS, reference=fp)
    with pytest.raises(InputError, match=r"121.*120"):
        sweep(net, [fp], *sets, accelerator, SweepOptions(probe=PROBE, k=121), reference=fp)
    with pytest.raises(InputError, match="labelled"):
        sweep(net, [fp], sets[0], cut(sets[1].x, None, 50), accelerator, OPTIONS, reference=fp)


ROWS: list[dict[str, Any]] = [
    {"variant": "fp", "top1": 91.5, "probe": "float", "probe_top1": 91.5, "knn_top1": 88.25, "knn_top1_bn": 88.5},
    {"variant": "2w, 4f", "top1": 61.0, "probe": "float", "probe_top1": 61.0, "knn_top1": 70.0},
]


def test_files_read_back(tmp_path: Path) -> None:
    write_sweep(ROWS, tmp_path, "SSQL")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["variant"] for row in table] == ["fp", "2w, 4f"]
    assert float(table[0]["knn_top1_bn"]) == 88.5 and table[1]["knn_top1_bn"] == ""
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 300
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep.csv", "sweep.png"]


def test_a_table_shows_the_figures_that_there_are() -> None:
    assert list(table(ROWS)) == [
        "| variant | float probe | k-NN | k-NN, batch norm re-estimated |",
        "|---|---|---|---|",
        "| fp | 91.50 | 88.25 | 88.50 |",
        "| 2w, 4f | 61.00 | 70.00 |  |",
    ]


def test_several_sweeps_stand_side_by_side() -> None:
    other = [{**row, "probe_top1": row["probe_top1"] - 1} for row in ROWS]
    assert list(side_by_side({"A": ROWS, "B": other}, ("probe_top1",), "bits")) == [
        "| bits | float probe: A | float probe: B |",
        "|---|---|---|",
        "| fp | 91.50 | 90.50 |",
        "| 2w, 4f | 61.00 | 60.00 |",
    ]


def test_one_picture_of_two_sweeps(tmp_path: Path) -> None:
    plot({"SSQL": ROWS, "SimSiam": ROWS[1:]}, tmp_path / "both.png")
    with Image.open(tmp_path / "both.png") as both:
        assert both.format == "PNG"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere"):
        write_csv(ROWS, tmp_path / "nowhere" / "sweep.csv")


def test_fewer_levels_lose_digits(accelerator: Accelerator) -> None:
    torch.manual_seed(0)
    net = create_model("cifar_resnet8_1x1", num_classes=0)

    def levels(n: float) -> Callable[[], AbstractContextManager[Any]]:
        @contextmanager
        def inside() -> Iterator[None]:
            before = {name: value.clone() for name, value in net.state_dict().items()}
            with torch.no_grad():
                for p in (p for p in net.parameters() if p.dim() == 4):
                    scale = p.abs().max() / n
                    p.copy_((p / scale).round() * scale)
            yield
            net.load_state_dict(before)

        return inside

    def loader(split: Any) -> EvalLoader:
        return EvalLoader(load_dataset("digits", Path(), split), plain(CIFAR10), batch_size=200)

    variants = [Variant("8", levels(127)), Variant("2", levels(1))]
    options = SweepOptions(probe=ProbeOptions(lr=1.0, epochs=15, schedule="cosine"), k=20)
    fine, coarse = sweep(net, variants, loader("train"), loader("test"), accelerator, options, reference=variants[0])
    assert fine["probe_top1"] > coarse["probe_top1"] + 10
    assert fine["knn_top1"] > coarse["knn_top1"]


def test_own_statistics_can_be_left_out(accelerator: Accelerator, net: Toy, sets: tuple[Any, Any]) -> None:
    """At a width they mean nothing: no figure and no probe is of them."""
    variants = [Variant("8", at(net), macs=48), Variant("4", at(net, width=4), macs=24)]
    both = sweep(net, variants, *sets, accelerator, OPTIONS, reference=variants[0], bn_batches=training(sets))
    seen: list[Tensor] = []
    net.norm.register_forward_hook(lambda module, args, out: seen.append(module.running_mean.clone()))
    alone = SweepOptions(probe=PROBE, k=15, seed=2, own_statistics=False)
    rows = sweep(net, variants, *sets, accelerator, alone, reference=variants[0], bn_batches=training(sets))
    assert seen and not any(torch.equal(mean, net.norm.running_mean) for mean in seen)
    for row, other in zip(rows, both, strict=True):
        assert list(row) == [
            "variant", "macs", "top1", "probe", "probe_top1_bn", "knn_top1_bn", "knn_k", "knn_temperature",
        ]  # fmt: skip
        assert row["top1"] == row["probe_top1_bn"] == other["probe_top1_bn"]
        assert row["knn_top1_bn"] == other["knn_top1_bn"]
    with pytest.raises(ValueError, match="bn_batches"):
        sweep(net, variants, *sets, accelerator, alone, reference=variants[0])


def test_macs_have_a_column_and_an_axis(tmp_path: Path) -> None:
    rows = [{**row, "macs": macs} for row, macs in zip(ROWS, (1_138_912_345, 35_040), strict=True)]
    assert list(table(rows)) == [
        "| variant | MACs, M | float probe | k-NN | k-NN, batch norm re-estimated |",
        "|---|---|---|---|---|",
        "| fp | 1,139 | 91.50 | 88.25 | 88.50 |",
        "| 2w, 4f | 0.03504 | 61.00 | 70.00 |  |",
    ]
    write_sweep(rows, tmp_path, "widths")
    with (tmp_path / "sweep.csv").open(newline="") as file:
        assert [row["macs"] for row in csv.DictReader(file)] == ["1138912345", "35040"]
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.format == "PNG"
