"""Which quantizer feeds which layer, and how many multiplications a layer does."""

import torch
from torch import nn

from lowbit.cost import cost
from lowbit.quant.activations import ActivationConfig, QuantActivation
from lowbit.quant.trace import trace


def quantizer(bits: int) -> QuantActivation:
    return QuantActivation(ActivationConfig(bits))


class Net(nn.Module):
    """conv, q4, pool, conv (4 bits), q0, conv (float), q3 plus something, that conv (float), mean, linear (float)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.q4, self.pool, self.drop = quantizer(4), nn.MaxPool2d(2), nn.Dropout()
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
        self.q0, self.q3 = quantizer(0), quantizer(3)
        self.c = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.b(self.drop(self.pool(self.q4(self.a(x)))))
        x = self.c(self.q0(x))
        x = self.c(self.q3(x) + 0)
        return self.fc(x.mean((2, 3)))


def test_inputs_and_macs() -> None:
    model = Net()
    model.pool.eval()
    found = trace(model, (3, 8, 8))
    assert {name: t.quantizer for name, t in found.items()} == {"a": None, "b": model.q4, "c": None, "fc": None}
    assert model.training and not model.pool.training and model.drop.training, "every module's mode is restored"
    rows = {row.name: row for row in cost(model, (3, 8, 8)).layers}
    assert rows["a"].macs == 64 * 4 * 3 * 9
    assert rows["b"].macs == 4 * 6 * 2 * 9  # 2x2 positions, 2 input channels a group
    assert rows["c"].macs == 2 * 4 * 36, "called twice"
    assert rows["fc"].macs == 30
    assert rows["b"].input_bits == 4 and rows["b"].bops == rows["b"].macs * 32 * 4
    assert rows["a"].bytes == 4 * (4 * 3 * 9 + 4)


class Added(nn.Module):
    """A quantizer's output, to which something is added in place, feeds b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.q4, self.b = nn.Conv2d(3, 4, 1), quantizer(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.q4(self.a(x))
        y += 0.3
        return self.b(y)


def test_a_sum_in_place_is_float() -> None:
    found = trace(Added(), (3, 8, 8))["b"]
    assert found.quantizer is None and found.input_grid is None
