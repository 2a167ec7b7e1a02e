"""Shared by S2-BNN's tests: command lines, checkpoints of a small student."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from click.testing import Result
from in_process import runner
from torch import nn

from lowbit.models.create import create_model
from lowbit.models.heads import projector
from lowbit.quant.binary import binarize_
from s2bnn.cli import cli
from s2bnn.load import header

ARCH = "cifar_resnet8_1x1"
CFG = {
    "input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 1.0, "crop_mode": "center",
    "interpolation": "bilinear",
}  # fmt: skip


@pytest.fixture(scope="session")
def s2bnn() -> Callable[..., Result]:
    """`s2bnn("report", "--step", 1)`; `code=2` expects that exit code."""
    return runner(cli)


@pytest.fixture(scope="session")
def encoder() -> Callable[..., nn.Module]:
    """The student as pretraining has it, `encoder(step, head)`."""

    def build(step: int, head: nn.Module | None = None) -> nn.Module:
        torch.manual_seed(step)
        net: Any = binarize_(create_model(ARCH, num_classes=1), step)
        net.fc = head or projector(64, 64, 16, 2)
        return net

    return build


@pytest.fixture(scope="session")
def checkpoint(encoder: Callable[..., nn.Module]) -> Callable[..., dict[str, Any]]:
    """What a pretraining writes, `checkpoint(step, head)`."""

    def build(step: int, head: nn.Module | None = None) -> dict[str, Any]:
        net = encoder(step, head)
        state = {f"{prefix}.{k}": v for prefix in ("encoder_q", "encoder_k") for k, v in net.state_dict().items()}
        return {**header(ARCH, step, CFG, "contrastive"), "state_dict": {**state, "queue": torch.ones(16, 8)}}

    return build
