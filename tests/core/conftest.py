"""Shared by the tests of core: recorded numbers of learned quantizers and their nets, and how their inputs are made."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Recorded as Arrays
from torch import Tensor, nn


class Recorded(Arrays):
    """A folder of recorded numbers: `recorded["qconv"]["relu.L4.out"]`, float64 where asked for."""

    @property
    def settings(self) -> dict[str, Any]:
        return self.json("settings")

    def pictures(self, shape: tuple[int, ...], shift: float = 0.0) -> Tensor:
        """sin(0.01 i i + s0 + shift) over the whole batch, float32 values in float64."""
        i = torch.arange(int(np.prod(shape)), dtype=torch.float64)
        return torch.sin(0.01 * i * i + self.settings["s0"] + shift).float().double().reshape(shape)

    def fill_(self, net: nn.Module, which: str, renamed: dict[str, str]) -> nn.Module:
        """Give a net the recorded values of the keys of `which`; `renamed`: parts of their names -> ours."""
        state: dict[str, Tensor] = {}
        for k, (key, shape) in enumerate(self.json("keys")[which]["keys"]):
            s = torch.sin(
                0.7 * torch.arange(int(np.prod(shape))).double() + self.settings["phase_multiplier"] * k + 0.1
            )
            if key.endswith("num_batches_tracked"):
                value = torch.tensor(0)
            elif len(shape) > 1:
                value = ((2 * shape[0] / s.numel()) ** 0.5 * s).reshape(shape)
            else:
                value = 1 + 0.1 * s if key.endswith((".weight", "running_var")) else 0.1 * s
            for old, new in renamed.items():
                key = key.replace(old, new)
            state[key] = value.float() if value.is_floating_point() else value
        net.load_state_dict(state)
        return net


@pytest.fixture(scope="session")
def learned_numbers(golden: Callable[[str], Path]) -> Recorded:
    """Of the learned quantizers and their nets."""
    return Recorded(golden("sqakd"))
