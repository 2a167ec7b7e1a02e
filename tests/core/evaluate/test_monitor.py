"""What pretraining is watched by: both figures and their line, and a width whose statistics are put around them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from lowbit.evaluate.collapse import collapse_probe, spread
from lowbit.evaluate.features import Features, extract, outputs
from lowbit.evaluate.knn import knn, knn_probe
from lowbit.evaluate.monitor import monitor_pretraining
from lowbit.train.protocol import Clock, Objective

CLOCK = Clock(0, 1, 5, 1, 1, 0)


class Pictures:
    """What a set is asked for here."""

    def __init__(self, count: int, classes: tuple[str, ...]) -> None:
        self.count, self.classes = count, classes

    def __len__(self) -> int:
        return self.count


class Said:
    """What a session is asked for here."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator, self.lines = accelerator, []

    def say(self, *lines: str) -> None:
        self.lines += lines


@pytest.fixture
def objective() -> Objective:
    torch.manual_seed(0)
    found = Objective()
    found.encoder = nn.Linear(6, 4, dtype=torch.float64)
    return found


@pytest.fixture
def sets(clouds: tuple[Features, Features], cut: Any) -> tuple[Any, Any]:
    bank, test = (cut(part.x, part.label, 50) for part in clouds)
    bank.pictures = test.pictures = Pictures(len(bank.x), ("a", "b"))
    return bank, test


def encoder_of(objective: Objective) -> nn.Module:
    return objective.get_submodule("encoder")


def test_both_figures_and_their_line(accelerator: Accelerator, objective: Objective, sets: tuple[Any, Any]) -> None:
    session: Any = Said(accelerator)
    probe = monitor_pretraining("encoder", *sets, session, every=2)
    assert probe(CLOCK._replace(epoch=0), objective) == {} and not session.lines
    values = probe(CLOCK, objective)
    bank, test = (extract(objective.encoder, batches, accelerator) for batches in sets)
    assert values == {**knn(bank, test, accelerator, k=120), **spread(objective.encoder(sets[1].x))._asdict()}
    (line,) = session.lines
    assert line.startswith(f" * k-NN Acc@1 {values['knn_top1']:.3f} z_std*sqrt(D) {values['z_std_relative']:.3f}")


def test_figures_and_line_of_a_variant_carry_its_name(
    accelerator: Accelerator, objective: Objective, sets: tuple[Any, Any]
) -> None:
    session: Any = Said(accelerator)
    plain = monitor_pretraining("encoder", *sets, session, every=1)(CLOCK, objective)
    named = monitor_pretraining("encoder", *sets, session, every=1, variant="w0.5")(CLOCK, objective)
    assert named == {f"{key}_w0.5": value for key, value in plain.items()}
    assert session.lines[1] == f"{session.lines[0]} at w0.5"


def test_without_classes_there_is_collapse_alone(
    accelerator: Accelerator, objective: Objective, sets: tuple[Any, Any]
) -> None:
    session: Any = Said(accelerator)
    sets[0].pictures.classes = ()
    values = monitor_pretraining("encoder", *sets, session, every=1)(CLOCK, objective)
    assert values == spread(objective.encoder(sets[1].x))._asdict()
    assert session.lines[0].startswith(f" * z_std*sqrt(D) {values['z_std_relative']:.3f} effective rank ")


def test_a_width_brings_its_own_statistics(
    accelerator: Accelerator, objective: Objective, sets: tuple[Any, Any]
) -> None:
    """Forwards run inside the context, and nothing of it stays."""
    inside: list[bool] = []

    @contextmanager
    def narrow(net: nn.Module) -> Iterator[None]:
        handle = net.register_forward_hook(lambda module, args, out: inside.append(True) or out[:, :2])
        yield
        handle.remove()

    found = collapse_probe(encoder_of, sets[1], accelerator, context=narrow)(CLOCK, objective)
    assert found == spread(objective.encoder(sets[1].x)[:, :2])._asdict()
    at_width = knn_probe(encoder_of, *sets, accelerator, k=9, context=narrow)(CLOCK, objective)
    bank, test = (extract(objective.encoder, part, accelerator, lambda net, x: outputs(net, x)[:, :2]) for part in sets)
    assert at_width == knn(bank, test, accelerator, k=9)
    assert inside and objective.encoder(sets[1].x).shape[1] == 4
