"""Converted nets at pairs of widths that nobody recorded, against the formulas written anew on the authors' net.

Nothing of bsq or lowbit computes the other side: plain torch functions on the tensors of the authors' file. In float64,
where the order of operations moves no activation code.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.datasets import CIFAR10

from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from lowbit.models.create import create_model

BATCH = 100  # the activation range is the batch's
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)

pytestmark = pytest.mark.data


def rounded(w: Tensor, bits: int) -> Tensor:
    """Each tensor in 2^N - 1 steps of its largest absolute value; codes in single precision, as the authors'."""
    largest, levels = w.abs().max(), 2**bits - 1
    code = torch.round(w.abs() * levels / largest) * w.sign()
    return code.double() * (largest.double() / levels)


def activation(x: Tensor, bits: int) -> Tensor:
    """ReLU6 above 3 bits, else PACT's start of 10; rounded by the batch's maximum."""
    x = x.clamp(0, 6 if bits > 3 else 10)
    if not bits:
        return x
    return x.max() * torch.round(x * (2**bits - 1) / x.max()) / (2**bits - 1)


class Formula:
    """The authors' ResNet-20 in N-bit weights and b-bit activations."""

    def __init__(self, state: dict[str, Tensor], bits: int, act: int) -> None:
        self.act = act
        quantized = {k for k, v in state.items() if (v.dim() > 1 and "downsample" not in k) or k == "fc.bias"}
        self.state = {k: rounded(v, bits) if k in quantized else v.double() for k, v in state.items()}

    def conv_bn(self, x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
        weight = self.state[f"{conv}.weight"]
        names = ("running_mean", "running_var", "weight", "bias")
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        return F.batch_norm(x, *(self.state[f"{bn}.{name}"] for name in names))

    def __call__(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv_bn(x, "conv1", "bn1"))
        for block in (f"layer{stage}.{number}" for stage in (1, 2, 3) for number in range(3)):
            first = block in ("layer2.0", "layer3.0")
            y = self.conv_bn(x, f"{block}.conv1", f"{block}.bn1", 2 if first else 1)
            y = self.conv_bn(activation(y, self.act), f"{block}.conv2", f"{block}.bn2")
            if first:
                x = self.conv_bn(x, f"{block}.downsample.0", f"{block}.downsample.1", 2)
            x = activation(y + x, self.act)
        return F.linear(x.mean((2, 3)), self.state["fc.weight"], self.state["fc.bias"])


@torch.no_grad()
def compare(bits: int, act: int, count: int, root: Path, file: Path) -> None:
    """Equal top-1 and loss on the first `count` test pictures."""
    state = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    state = {key.removeprefix("module."): value for key, value in state.items()}
    net = create_model("cifar_resnet20_1x1")
    net.load_state_dict(state)
    net = to_bits_(quantize_bsq_activations_(net, act), bits).double().eval()
    nets: tuple[Callable[[Tensor], Tensor], ...] = (net, Formula(state, bits, act))

    data = CIFAR10(str(root), train=False)
    pictures = torch.as_tensor(data.data[:count]).permute(0, 3, 1, 2)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    right, loss = [0, 0], [0.0, 0.0]
    for start in range(0, count, BATCH):
        x = ((pictures[start : start + BATCH].float() / 255 - mean) / std).double()
        labels = torch.tensor(data.targets[start : start + BATCH])
        for i, logits in enumerate(f(x) for f in nets):
            right[i] += int((logits.argmax(1) == labels).sum())
            loss[i] += F.cross_entropy(logits, labels, reduction="sum").item() / count
    assert right[0] == right[1] and right[0] > 0.2 * count
    assert loss[0] == pytest.approx(loss[1], abs=1e-12)


def test_one_pair(cifar10_root: Path, authors_resnet20: Path) -> None:
    compare(5, 3, 100, cifar10_root, authors_resnet20)


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "act"), [(5, 3), (2, 8), (6, 4), (4, 0)])
def test_pairs(bits: int, act: int, cifar10_root: Path, authors_resnet20: Path) -> None:
    compare(bits, act, 500, cifar10_root, authors_resnet20)
