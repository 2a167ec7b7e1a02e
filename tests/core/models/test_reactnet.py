"""ReActNet-A: recorded outputs and gradients, keys of the authors' files, figures of the papers, packed size."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recorded import Recorded as Arrays
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.models.reactnet import Block, ReActNet
from lowbit.quant.binary import binarize_, binary_convolutions, step_of
from lowbit.quant.layers import quantized_layers

REAL, BINARY, PARAMETERS, BINARY_PARAMETERS = 11_862_016, 4_816_896_000, 29_343_592, 28_253_184
TINY = (4, 8, 16, 16)


class Recorded(Arrays):
    """Arrays of the original; its nets are filled by a formula with a phase for each key (README of the recording)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ops, self.net, self.keys = self["ops"], self["reactnet"], self.json("keys")
        self.phase = {1.9: 1.3, 2.6: 1.7}[float(self.net["s"])]

    def pictures(self) -> Tensor:
        i = torch.arange(2 * 3 * 64 * 64, dtype=torch.float64)
        x = torch.sin(0.01 * i * i + self.net["s"]).float().view(2, 3, 64, 64)
        assert torch.equal(x.flatten()[:8], self.net["x_first8"])
        return x

    def fill(self, keys: set[str]) -> dict[str, Tensor]:
        """Values of those of the net's keys that ours has."""
        named = {key: (k, shape) for k, (key, shape, _) in enumerate(self.keys["reactnet_128"]) if key in keys}
        return {key: self._value(key, k, shape) for key, (k, shape) in named.items()}

    def _value(self, key: str, k: int, shape: list[int]) -> Tensor:
        if not shape:
            return torch.tensor(0)
        count = int(np.prod(shape))
        s = torch.arange(count, dtype=torch.float64).mul_(0.7).add_(self.phase * k).add_(0.1).sin_()
        if len(shape) > 1 and not key.endswith("bias"):
            s.mul_((2 / (count / shape[0])) ** 0.5)
        elif "prelu" in key:
            s.mul_(0.1).add_(0.25)
        else:
            s.mul_(0.1).add_(1 if key.endswith(("running_var", "weight")) else 0)
        return s.view(shape).float()


@pytest.fixture(scope="module")
def recorded(golden: Callable[[str], Path]) -> Recorded:
    return Recorded(golden("s2bnn"))


@pytest.fixture(scope="module")
def filled(recorded: Recorded) -> nn.Module:
    """ReActNet-A of 128 outputs in float64, with the recorded weights."""
    with torch.device("meta"):
        net = create_model("reactnet_a", num_classes=128)
    net.load_state_dict(recorded.fill(set(net.state_dict())), assign=True)
    return net.double()


def close(ours: Tensor, theirs: Tensor, limit: float) -> bool:
    return bool((ours - theirs).abs().max() <= limit * theirs.abs().max())


HEAVY = [pytest.param(*case, marks=pytest.mark.heavy) for case in ((1, "train"), (2, "eval"))]


@pytest.mark.parametrize(("step", "mode"), [(1, "eval"), (2, "train"), *HEAVY])
def test_recorded_nets(recorded: Recorded, filled: nn.Module, step: int, mode: str) -> None:
    net, at = binarize_(filled.train(mode == "train"), step), f"step{step}.{mode}"
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.zero_grad()
    y = net(recorded.pictures().double())
    (y * recorded.net["dy"]).sum().backward()
    assert close(y.detach(), recorded.net[f"{at}.f64.y"], 1e-12)
    ours, theirs = dict(net.named_parameters()), recorded.net[f"{at}.f64.grad_norms"]
    names = recorded.keys["reactnet_128_params"]
    assert {name for name, norm in zip(names, theirs, strict=True) if norm.isnan()} == set(names) - set(ours)
    norms = [(ours[name].grad, norm) for name, norm in zip(names, theirs, strict=True) if name in ours]
    assert all(abs(grad.norm() - norm) <= 1e-11 * norm for grad, norm in norms if grad is not None)
    if mode == "train":
        norms = [
            (net.get_buffer(name).double(), norm)
            for name, norm in zip(
                recorded.keys["reactnet_128_buffers"], recorded.net[f"{at}.buffer_norms"], strict=True
            )
            if name in buffers
        ]  # recorded in float32
        assert len(norms) == len(buffers)
        assert all(abs(buffer.norm() - norm) <= 1e-4 * norm for buffer, norm in norms if buffer is not None)
    for name, buffer in buffers.items():
        net.get_buffer(name).copy_(buffer)


def cases(recorded: Recorded) -> Iterator[tuple[str, Block, dict[str, Tensor]]]:
    for name in ("same", "down", "widen"):
        start = f"blk.{name}."
        arrays = {key.removeprefix(start): value for key, value in recorded.ops.items() if key.startswith(start)}
        block = Block(*arrays["cfg"].tolist())
        weights = {key: arrays[f"w.{key}"] for key in block.state_dict()}
        block.load_state_dict(weights)
        yield name, block, arrays


@pytest.mark.parametrize("step", [1, 2])
def test_recorded_blocks(recorded: Recorded, step: int) -> None:
    for name, block, arrays in cases(recorded):
        net: Any = binarize_(nn.Sequential(nn.Conv2d(1, 1, 1), block), step)[1]  # type: ignore[index]
        for mode in ("eval", "train"):
            x, at = arrays["x"].clone().requires_grad_(), f"step{step}.{mode}"
            net.train(mode == "train").zero_grad()
            y = net(x)
            y.backward(arrays["dy"])
            assert close(y.detach(), arrays[f"{at}.y"], 2e-6) and close(x.grad, arrays[f"{at}.dx"], 4e-6), name  # type: ignore[arg-type]
        for key, parameter in net.named_parameters():
            assert close(parameter.grad, arrays[f"{at}.d.{key}"], 1e-5), (name, key)
        for key, buffer in net.named_buffers():
            assert close(buffer, arrays[f"{at}.buf.{key}"], 2e-6), (name, key)


def test_keys_are_the_authors(recorded: Recorded) -> None:
    with torch.device("meta"):
        ours = create_model("reactnet_a", num_classes=128).state_dict()
    theirs = {key: tuple(shape) for key, shape, _ in recorded.keys["reactnet_128"]}
    assert {key: tuple(t.shape) for key, t in ours.items()} == {key: theirs[key] for key in ours}
    unused = set(theirs) - set(ours)
    numbers = sum(int(np.prod(theirs[key])) for key in unused if "running" not in key and "num_" not in key)
    assert numbers == 5_600_640 and {key.split(".")[2] for key in unused} == {
        "binary_pw", "bn2", "binary_pw_down1", "binary_pw_down2", "bn2_1", "bn2_2",
    }  # fmt: skip


def on_meta(step: int, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return binarize_(create_model("reactnet_a", **arguments), step)


def test_figures_of_the_papers() -> None:
    found = cost(on_meta(2), (3, 224, 224))
    assert (found.real_macs, found.binary_macs, found.ops) == (REAL, BINARY, 87_126_016)
    assert (found.parameters, found.binary_parameters) == (PARAMETERS, BINARY_PARAMETERS)
    small = cost(on_meta(2, num_classes=10), (3, 192, 192))
    scaled = BINARY * 192**2 // 224**2
    assert (small.real_macs, small.binary_macs) == (10_838_016 * 192**2 // 224**2 + 10_240, scaled)
    assert small.ops == small.real_macs + scaled // 64
    half = cost(on_meta(1), (3, 224, 224))
    assert (half.macs, half.binary_macs, half.ops) == (REAL + BINARY, 0, REAL + BINARY)


def test_packed_size() -> None:
    """28,253,184 bits and the 10,912 scales: 3.53 MB within 1.05."""
    rows = [row for row in cost(on_meta(2), (3, 224, 224)).layers if row.bits == 1]
    least = BINARY_PARAMETERS / 8
    assert sum(row.parameters for row in rows) == BINARY_PARAMETERS
    assert least + 4 * 10_912 <= sum(row.stored_bits for row in rows) / 8 <= 1.05 * least


@pytest.mark.heavy
@torch.no_grad()
def test_the_whole_net_packed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net, path = binarize_(create_model("reactnet_a", num_classes=0), 2).eval(), tmp_path / "net"
    written = save_packed(net, path, {"arch": "reactnet_a", "args": {"num_classes": 0}})
    floats = 4 * sum(t.numel() for key, t in net.state_dict().items() if "binary" not in key and t.is_floating_point())
    assert BINARY_PARAMETERS / 8 < written - floats < 1.05 * BINARY_PARAMETERS / 8
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(load_packed(path)(x), net(x))


@pytest.mark.parametrize(("arch", "side", "classes"), [("reactnet_a_32", 32, 10), ("reactnet_a_64", 64, 200)])
def test_variants_for_small_pictures_end_in_a_map_of_4x4(arch: str, side: int, classes: int) -> None:
    with torch.device("meta"):
        net = create_model(arch)
        x = torch.randn(1, 3, side, side)
        assert net.forward_features(x).shape == (1, 1024, 4, 4) and net(x).shape == (1, classes)  # type: ignore[operator]
        assert set(net.state_dict()) == set(create_model("reactnet_a").state_dict())


@pytest.mark.parametrize("sides", [(225, 225), (32, 48), (176, 176)])
def test_other_sizes_are_refused(sides: tuple[int, int]) -> None:
    with torch.device("meta"), pytest.raises(InputError, match="takes multiples of 32") as refusal:
        create_model("reactnet_a")(torch.randn(1, 3, *sides))
    assert "\n" not in str(refusal.value) and "x".join(map(str, sides)) in str(refusal.value)


def tiny(step: int, **arguments: Any) -> ReActNet:
    torch.manual_seed(0)
    net = ReActNet(5, channels=TINY, **arguments)
    assert binarize_(net, step) is net
    return net


def test_steps_share_every_tensor() -> None:
    x, net = torch.randn(2, 3, 8, 8), tiny(0)
    state, outputs = net.state_dict(), [net(x)]
    for step in (1, 2):
        other = tiny(step)
        other.load_state_dict(state)  # strict
        assert step_of(other) == step and torch.equal(binarize_(net, step)(x), other(x))
        outputs.append(other(x))
    assert len({float(y.detach().sum()) for y in outputs}) == 3
    assert len(binary_convolutions(net)) == len(list(quantized_layers(net))) == 2 + 3 * 2 and net.reduction == 4
    assert tiny(1, unstrided=2).reduction == 1 and tiny(1, unstrided=1).reduction == 2


def test_fresh_binary_weights_have_both_signs() -> None:
    """Nor are a convolution's output channels alike."""
    net = ReActNet(5, channels=(16, 32, 32))
    for name, layer in quantized_layers(binarize_(net, 2)):
        codes = layer.weight_codes()
        assert codes is not None and 0.3 < float(codes.codes.float().mean()) < 0.7, name
        assert len(codes.codes.flatten(1).unique(dim=0)) == len(codes.codes), name


def test_all_parameters_get_gradients_and_nothing_is_read_back() -> None:
    for step in (0, 1, 2):
        with FakeTensorMode():
            net = tiny(step)
            net(torch.randn(2, 3, 8, 8)).sum().backward()
            assert all(p.grad is not None for p in net.parameters())


def test_timm_s_services() -> None:
    with torch.device("meta"):
        net = create_model("reactnet_a", features_only=True)
        shapes = [tuple(y.shape[1:]) for y in net(torch.randn(1, 3, 64, 64))]
        assert shapes == [(64, 32, 32), (128, 16, 16), (256, 8, 8), (512, 4, 4), (1024, 2, 2)]
        with pytest.raises(InputError, match="8 to 12 channels: a block keeps or doubles them"):
            create_model("reactnet_a", channels=(8, 12))
    net = tiny(2)
    net.reset_classifier(0)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 16) and net.get_classifier() is net.fc
