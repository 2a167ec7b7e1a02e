"""Bit streams, and packed files of a layer that is not BSQ's: unsigned codes, zero points, scales per channel."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

import lowbit
from lowbit.cost import cost
from lowbit.errors import InputError
from lowbit.export.bitstream import CHUNK, pack, packed_bytes, unpack
from lowbit.export.codes import KEY, checksum, read_codes
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.models.surgery import replace_
from lowbit.quant.activations import QuantActivation
from lowbit.quant.layers import Codes, Grid

RECIPE = {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}}


@pytest.mark.parametrize("bits", [0, 1, 3, 5, 8, 9, 17])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_streams_come_back(bits: int, signed: bool, count: int) -> None:
    low, high = (-(1 << bits) // 2, (1 << bits) // 2) if signed and bits else (0, 1 << bits)
    codes = torch.randint(low, high, (count,), generator=torch.Generator().manual_seed(bits))
    data = pack(codes, bits, signed)
    assert len(data) == packed_bytes(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(data, count, bits, signed).long(), codes)


def test_the_first_bits_are_the_lowest() -> None:
    assert pack(torch.tensor([1, -1, 2, 0]), 3, True) == bytes([0b10_111_001, 0b000_0])


def test_long_streams_and_codes_that_do_not_fit() -> None:
    codes = torch.arange(2 * CHUNK + 5) % 8
    assert torch.equal(unpack(pack(codes, 3, False), len(codes), 3, False).long(), codes)
    with pytest.raises(ValueError, match="do not fit 3 bits"):
        pack(torch.tensor([8]), 3, False)


class Affine(nn.Module):
    """A made-up method's layer: unsigned codes with zero points, a scale per output channel, a float bias."""

    def __init__(self, weight: Tensor, bits: int) -> None:
        super().__init__()
        per_channel = (-1, *[1] * (weight.dim() - 1))
        low, high = (f(weight.flatten(1), 1) for f in (torch.amin, torch.amax))
        self.bits, self.scale = bits, ((high - low) / (2**bits - 1)).reshape(per_channel)
        self.zero = (-low.reshape(per_channel) / self.scale).round()
        self.code = (weight / self.scale + self.zero).round().clamp(0, 2**bits - 1).to(torch.int32)
        self.bias = nn.Parameter(torch.randn(len(weight)))

    def weight_codes(self) -> Codes:
        return Codes(self.code, Grid(self.scale, self.zero, self.bits, False))

    def bias_codes(self) -> None:
        return None

    def input_grid(self) -> None:
        return None

    def to_plain(self) -> nn.Module:
        out, inside = self.code.shape[:2]
        plain = nn.Linear(inside, out)
        plain.weight.data, plain.bias.data = self.weight_codes().values(), self.bias.data
        return plain

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_codes().values(), self.bias)


@pytest.fixture
def packed(tmp_path: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    model: Any = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    replace_(model, {"fc": Affine(model.fc.weight.detach(), 5)})
    path = tmp_path / "net.safetensors"
    save_packed(model, path, RECIPE)
    return model, path


def test_any_method_s_layer_is_packed(packed: tuple[Any, Path]) -> None:
    model, path = packed
    loaded: Any = load_packed(path)
    assert torch.equal(loaded.fc.weight, model.fc.weight_codes().values())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded(x), model(x))
    row = {row.name: row for row in cost(model, (3, 32, 32)).layers}["fc"]
    assert (row.parameters, row.bits, row.stored_bits) == (195, 5, 192 * 5 + 32 * (3 + 3 + 3))
    assert read_codes(path)[0]["recipe"] == RECIPE
    with safe_open(str(path), "pt") as file:
        assert sorted(file.keys()) == ["codes", "floats"] and list(file.metadata()) == [KEY]


def rewritten(path: Path, change: Any) -> Path:
    with safe_open(str(path), "pt") as file:
        head, tensors = json.loads(file.metadata()[KEY]), {k: file.get_tensor(k) for k in ("codes", "floats")}
    change(head)
    if "crc" in head:
        head["crc"] = checksum(head, tensors)
    safetensors.torch.save_file(tensors, str(path), {KEY: json.dumps(head)})
    return path


def test_loading_draws_nothing(packed: tuple[Any, Path]) -> None:
    before = torch.get_rng_state()
    lowbit.load(packed[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_format_1_is_read(packed: tuple[Any, Path]) -> None:
    """Zero points of release 0.1.0: one whole number for each scale; activations of one kind."""

    def former(head: dict[str, Any]) -> None:
        assert head["format"] == 2 and head.pop("sizes") == {} and not head["activations"]
        head.update(format=1, activations=[[{"bits": 4, "function": "relu", "range": "batch"}, ["relu"]]])

    model, path = packed
    loaded: Any = load_packed(rewritten(path, former))
    assert torch.equal(loaded.fc.weight, model.fc.weight_codes().values())
    assert isinstance(loaded.relu, QuantActivation) and loaded.relu.config.bits == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["recipe"].update(arch="cifar_resnet14_1x1"), "another net"),
        (lambda h: h["recipe"].update(arch="hf-hub:somebody/net"), "unknown net"),
        (lambda h: h["recipe"]["args"].update(checkpoint_path="x.pth"), "not allowed"),
        (lambda h: h["recipe"]["args"].update(num_classes=4), "another net"),
        (lambda h: h["coded"]["fc.weight"].update(bits=6), "damaged"),
        (lambda h: h["coded"]["fc.weight"].update(bits=10**9), "damaged"),
        (lambda h: h["coded"].clear(), "damaged"),
        (lambda h: h.update(activations=[["largest", {"bits": 4}, ["layer9"]]]), "damaged"),
        (lambda h: h.update(format=99), "update lowbit"),
        (lambda h: h.update(format=0), "update lowbit"),
        (lambda h: h.update(activations=[["other", {}, ["relu"]]]), "damaged"),
        (
            lambda h: h.update(activations=[["observed", {"function": "x"}, ["relu"]]]),
            "damaged",
        ),
        (lambda h: h.update(sizes={"conv1": {"stride": 2}}), "damaged"),
        (lambda h: h.update(sizes={"conv1": {"out_channels": 8}}), "another net"),
        (lambda h: h.update(sizes={"conv1": {"out_channels": 10**9}}), "damaged"),
        (lambda h: h.update(activations=[["largest", {"bits": 99}, ["relu"]]]), "99 activation bits"),
        (lambda h: h["coded"]["fc.weight"].update(zero=0.3), "damaged"),
        (lambda h: h.pop("crc"), "damaged"),
    ],
)
def test_files_that_lie(packed: tuple[nn.Module, Path], change: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_packed(rewritten(packed[1], change))


def test_an_altered_head_shows(packed: tuple[nn.Module, Path]) -> None:
    data = packed[1].read_bytes()
    at = data.index(b"cifar_resnet8")
    packed[1].write_bytes(data[:at] + b"d" + data[at + 1 :])
    with pytest.raises(InputError, match="damaged"):
        load_packed(packed[1])


def test_damaged_foreign_and_missing_files(packed: tuple[nn.Module, Path], tmp_path: Path) -> None:
    data = bytearray(packed[1].read_bytes())
    (tmp_path / "short").write_bytes(data[: len(data) // 2])
    data[-5] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    (tmp_path / "text").write_text("not a safetensors file")
    safetensors.torch.save_file({"a": torch.zeros(1)}, str(tmp_path / "foreign"))
    for name in ("short", "flipped", "text", "foreign", "missing"):
        with pytest.raises(InputError, match=r"damaged|not a packed|no such file") as error:
            load_packed(tmp_path / name)
        assert "\n" not in str(error.value) and name in str(error.value)


def test_what_cannot_be_packed(packed: tuple[Any, Path], tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    with pytest.raises(InputError, match="no quantized layer"):
        save_packed(create_model("cifar_resnet8_1x1"), path, RECIPE)
    with pytest.raises(InputError, match="another net"):
        save_packed(packed[0], path, {"arch": "cifar_resnet8_1x1"})
    packed[0].bn1.double()
    with pytest.raises(InputError, match="float types"):
        save_packed(packed[0], path, RECIPE)
    assert not path.exists()


class Learned(nn.Module):
    """A made-up method's layer: signed codes with a scale per output channel; it quantizes its own input to 2 bits."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.scale = nn.Parameter(weight.abs().amax(1, keepdim=True) / 3)
        self.code = (weight / self.scale).detach().round().to(torch.int32)
        self.bias, self.step = nn.Parameter(torch.randn(len(weight))), nn.Module()
        self.step.size = nn.Parameter(torch.ones(()))  # of the input's quantizer

    def weight_codes(self) -> Codes:
        return Codes(self.code, Grid(self.scale.detach(), torch.zeros(()), 3, True))

    def bias_codes(self) -> None:
        return None

    def input_grid(self) -> Grid:
        return Grid(self.step.size.detach(), torch.zeros(()), 2, False)  # type: ignore[union-attr]

    def to_plain(self) -> nn.Module:
        plain = nn.Linear(self.code.shape[1], len(self.code))
        plain.weight.data, plain.bias.data = self.weight_codes().values(), self.bias.data
        return plain

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight_codes().values(), self.bias)


def test_a_scale_per_channel_without_zero_points_comes_back(tmp_path: Path) -> None:
    model: Any = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    replace_(model, {"fc": Learned(model.fc)})
    save_packed(model, tmp_path / "net.safetensors", RECIPE)
    loaded: Any = load_packed(tmp_path / "net.safetensors")
    assert torch.equal(loaded.fc.weight, model.fc.weight_codes().values())


def test_a_layer_s_own_quantizers_cost_no_parameters_and_count_in_bops() -> None:
    plain: Any = create_model("cifar_resnet8_1x1", num_classes=3).eval()
    before = cost(plain, (3, 32, 32))
    after = cost(replace_(plain, {"fc": Learned(plain.fc)}), (3, 32, 32))
    assert after.parameters == before.parameters and after.macs == before.macs
    row = {row.name: row for row in after.layers}["fc"]
    assert (row.bits, row.input_bits, row.bops) == (3, 2, 192 * 3 * 2)
    assert not [row.name for row in after.layers if row.name.startswith("fc.")]


def test_codes_beyond_their_bits_or_sign_are_refused() -> None:
    ones = torch.tensor([1, -1, 1])
    with pytest.raises(ValueError, match="do not fit 1 bits, signed"):
        pack(ones, 1, True)
    with pytest.raises(ValueError, match="do not fit 1 bits, unsigned"):
        pack(ones, 1, False)
    with pytest.raises(ValueError, match="do not fit 0 bits"):
        pack(ones, 0, True)
    assert torch.equal(unpack(pack((ones + 1) // 2, 1, False), 3, 1, False) * 2 - 1, ones)
