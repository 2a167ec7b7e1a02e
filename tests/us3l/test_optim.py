"""The learning rates of US3L's commands against the recorded ones, and where group regularization replaces decay."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lowbit.options import OptimOptions
from lowbit.train.protocol import Clock
from us3l.config import Config
from us3l.optim import AUTHORS, optimizer, rates


def config_of(train: dict[str, Any], ofa: dict[str, Any] | None = None) -> Config:
    return Config.model_validate({"TRAIN": train, "MODEL": {"OFA": ofa or {}}})


def by_epoch(config: Config, command: Any, optim: OptimOptions = AUTHORS) -> list[float]:
    epochs, rate = config.TRAIN.EPOCHS, rates(config, command, optim)["main"]
    return [rate(Clock(0, epoch, epochs, 0, 10, 0)) for epoch in range(epochs)]


def test_rates_are_the_recorded_ones(golden: Callable[[str], Path]) -> None:
    recorded = json.loads((golden("us3l") / "lr.json").read_text())
    assert len(recorded) >= 5
    for name, expected in recorded.items():
        found = re.fullmatch(r"(\w+?)_(cosine|step)_base([\d.]+)_E(\d+)_?(?:warmup(\d*)\w*|([\d_]*))", name)
        assert found is not None, name
        command, kind, base, epochs, warmup, milestones = found.groups()
        keys: dict[str, Any] = {"TYPE": "cosine" if kind == "cosine" else None, "BASE_LR": float(base)}
        keys["WARMUP_EPOCHS"] = int(warmup or 0) if command == "ssl" else 5  # elsewhere without effect
        keys["DECAY_MILESTONES"] = tuple(int(epoch) for epoch in milestones.split("_")) if milestones else ()
        config = config_of({"EPOCHS": int(epochs), "LR_SCHEDULER": keys})
        assert by_epoch(config, command) == pytest.approx(expected, rel=1e-12, abs=1e-15), name


def test_flags_replace_the_schedule() -> None:
    config = config_of({"EPOCHS": 4, "LR_SCHEDULER": {"TYPE": "cosine", "BASE_LR": 1.0, "WARMUP_EPOCHS": 2}})
    assert by_epoch(config, "ssl")[:3] == [0.0, 0.5, 1.0]
    assert by_epoch(config, "ssl", OptimOptions(sched="step", warmup_epochs=1))[:2] == [0.1, 1.0]


def test_group_regularization_takes_the_place_of_weight_decay() -> None:
    train = {"LR_SCHEDULER": {"BASE_LR": 0.1}, "OPTIMIZER": {"WEIGHT_DECAY": 1e-4, "MOMENTUM": 0.9}}
    plain, grouped = config_of(train), config_of(train, {"REGULARIZER": True})

    def decays(config: Config, command: Any) -> list[float]:
        return [group["weight_decay"] for group in optimizer(config, nn.Linear(2, 2), command).param_groups]

    assert decays(plain, "ssl") == [1e-4] and decays(grouped, "ssl") == decays(grouped, "distill") == [0.0]
    assert decays(grouped, "linear") == [1e-4]
