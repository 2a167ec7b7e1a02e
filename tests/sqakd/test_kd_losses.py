"""The distillation losses: against recorded numbers and slow formulas, value and gradient, in double precision."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lowbit.train.protocol import Clock
from sqakd.kd import maps, regress, relations

CLOCK = Clock(0, 0, 4, 0, 2, 0)
Loss = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]


def close(found: Tensor, expected: Tensor, relative: float = 1e-6) -> None:
    error = float((found.detach() - expected).abs().max() / expected.abs().max())
    assert found.shape == expected.shape and error < relative, error


def features(kd: Any, places: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    student = [kd[f"fs{i}"].double().requires_grad_() for i in places]
    return student, [kd[f"ft{i}"].double() for i in places]


def given(module: nn.Module, kd: Any, prefix: str, renamed: Mapping[str, str]) -> nn.Module:
    """The recorded parameters, by their names in the module."""
    module = module.double()
    own = dict(module.named_parameters())
    for theirs, ours in renamed.items():
        own[ours].data = kd[f"{prefix}p.{theirs}"].double()
    return module


def gradients(module: nn.Module, kd: Any, prefix: str, renamed: Mapping[str, str], noise: Sequence[str] = ()) -> None:
    """Against the recorded ones; `noise`: those that are 0 but for rounding."""
    own = dict(module.named_parameters())
    for theirs, ours in renamed.items():
        if theirs not in noise:
            close(own[ours].grad, kd[f"{prefix}gp.{theirs}"].double(), 3e-6)  # type: ignore[arg-type]


PLAIN: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "attention": (maps.attention, (1, 2, 3)), "nst": (maps.nst, (1, 2, 3)), "similarity": (relations.similarity, (3,)),
    "rkd": (relations.rkd, (4,)), "fsp": (maps.fsp, (0, 1, 2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PLAIN))
def test_recorded_losses_without_parameters(recorded: Any, name: str) -> None:
    kd, (loss, places) = recorded["kd"], PLAIN[name]
    student, teacher = features(kd, places)
    value = loss(student, teacher)
    close(value, kd[f"{name}.loss"].double())
    value.backward()
    for i, leaf in zip(places, student, strict=True):
        close(leaf.grad, kd[f"{name}.g_fs{i}"].double(), 2e-6)  # type: ignore[arg-type]


HINT = {"conv.weight": "regression.0.weight", "conv.bias": "regression.0.bias", "bn.weight": "regression.1.weight",
        "bn.bias": "regression.1.bias"}  # fmt: skip


def test_recorded_hint(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (2,))
    module = given(regress.Hint(student[0].shape, teacher[0].shape), kd, "hint.", HINT)
    value = module(student, teacher)
    close(value, kd["hint.loss"].double())
    value.backward()
    close(student[0].grad, kd["hint.g_fs2"].double())  # type: ignore[arg-type]
    gradients(module, kd, "hint.", HINT, noise=("conv.bias",))


def vid_names(place: int) -> dict[str, str]:
    means = {f"regressor.{i}.weight": f"mean.{place}.{i}.weight" for i in (0, 2, 4)}
    return {"log_scale": f"scale.{place}", **means}


def test_recorded_vid(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (1, 2, 3))
    module = regress.Variational([f.shape for f in student], [f.shape for f in teacher])
    close(module.scale[0].double(), torch.full((4,), 4.9932, dtype=torch.float64), 1e-4)
    for place in range(3):
        given(module, kd, f"vid.{place}.", vid_names(place))
    value = module(student, teacher)
    close(value, kd["vid.loss"].double())
    value.backward()
    for place, leaf in enumerate(student):
        close(leaf.grad, kd[f"vid.g_fs{place + 1}"].double(), 2e-6)  # type: ignore[arg-type]
        gradients(module, kd, f"vid.{place}.", vid_names(place))


def test_recorded_correlation(recorded: Any) -> None:
    kd = recorded["kd"]
    student, teacher = features(kd, (4,))
    module = relations.Correlation((8, 8), 16)
    names = {of: {f"linear.{part}": f"{name}.{part}" for part in ("weight", "bias")}
             for of, name in (("s", "student"), ("t", "teacher"))}  # fmt: skip
    for of, renamed in names.items():
        given(module, kd, f"correlation.{of}.", renamed)
    value = module(student, teacher)
    close(value, kd["correlation.loss"].double())
    value.backward()
    close(student[0].grad, kd["correlation.g_fs4"].double(), 2e-6)  # type: ignore[arg-type]
    for of, renamed in names.items():
        gradients(module, kd, f"correlation.{of}.", renamed)


def coder_names(prefix: str, *, norm: bool) -> dict[str, str]:
    """Their places 0, 3, 6 of convolutions, 1, 4, 7 of batch norms -> ours."""
    step = 3 if norm else 2
    places = {3 * i + j: step * i + j for i in range(3) for j in range(1 + norm)}
    return {f"{prefix}.{theirs}.{part}": f"{prefix}.{ours}.{part}"
            for theirs, ours in places.items() for part in ("weight", "bias")}  # fmt: skip


def test_recorded_factor_transfer(recorded: Any) -> None:
    """Both stages."""
    kd = recorded["kd"]
    student, teacher = features(kd, (3,))
    both = {**coder_names("encoder", norm=False), **coder_names("decoder", norm=False)}
    paraphraser = given(regress.Paraphraser(8), kd, "factor.par.", both)
    value = paraphraser([], teacher)
    close(value, kd["factor.init_loss"].double())
    value.backward()
    gradients(paraphraser, {k.replace("par.init.gp", "par.gp"): v for k, v in kd.items()}, "factor.par.", both)
    paraphraser.zero_grad()
    translated = coder_names("encoder", norm=True)
    renamed = {theirs: ours.replace("encoder", "translator") for theirs, ours in translated.items()}
    module = given(regress.FactorTransfer((8, 8), paraphraser), kd, "factor.tr.", renamed)  # type: ignore[arg-type]
    close(paraphraser.encoder(teacher[0]), kd["factor.factor_t"].double())  # type: ignore[operator]
    value = module(student, teacher)
    close(value, kd["factor.loss"].double())
    value.backward()
    close(student[0].grad, kd["factor.g_fs3"].double(), 2e-6)  # type: ignore[arg-type]
    gradients(module, kd, "factor.tr.", renamed, noise=[f"encoder.{i}.bias" for i in (0, 3, 6)])
    assert all(p.grad is None for p in paraphraser.parameters())


@pytest.mark.parametrize("size", ["down", "up", "crop"])
@pytest.mark.parametrize("name", ["at", "nst", "vid", "ft", "hint"])
def test_recorded_losses_of_maps_of_other_sizes(recorded: Any, size: str, name: str) -> None:
    kd = recorded["kd"]
    s, t = kd[f"mis.{size}.fs"].double().requires_grad_(), kd[f"mis.{size}.ft"].double()
    prefix = f"mis.{size}.{name}."
    if name == "ft":
        value = F.l1_loss(*map(maps.attention_of, maps.same_size(s, t)))
    elif name == "hint":
        value = given(regress.Hint(s.shape, t.shape), kd, prefix, HINT)([s], [t])
    elif name == "vid":
        value = given(regress.Variational([s.shape], [t.shape]), kd, prefix, vid_names(0))([s], [t])
    else:
        value = {"at": maps.attention, "nst": maps.nst}[name]([s], [t])
    close(value, kd[f"{prefix}loss"].double())
    value.backward()
    close(s.grad, kd[f"{prefix}g_fs"].double(), 2e-6)  # type: ignore[arg-type]
