"""Backbones that we export carry a checksum; what is altered, or of another kind than we write, is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from safetensors import safe_open
from torch import Tensor

import lowbit
from lowbit.errors import InputError
from lowbit.export.backbone import save_backbone
from lowbit.models.create import create_model
from lowbit.models.weight_file import KEY, PACKED, digest_of, read_weights
from lowbit.models.weights import open_backbone

ARCH = "cifar_resnet8_1x1"


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ours") / "backbone.safetensors"
    torch.manual_seed(0)
    save_backbone(create_model(ARCH, num_classes=3), path, ARCH)
    return path


def content(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    with safe_open(str(path), "pt") as file:
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        return state, json.loads(file.metadata()[KEY])


def write(path: Path, state: dict[str, Tensor], said: str | dict[str, Any]) -> Path:
    safetensors.torch.save_file(state, path, {KEY: said if isinstance(said, str) else json.dumps(said)})
    return path


def test_it_has_a_checksum_and_timm_loads_it(ours: Path) -> None:
    state, said = content(ours)
    assert set(said) == {"arch", "digest"} and said["digest"] == digest_of({"arch": ARCH}, state)
    theirs = timm.create_model(ARCH, num_classes=0, checkpoint_path=str(ours)).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in state.items()) and set(theirs) == set(state)


def test_a_backbone_of_release_0_1_0_has_none(ours: Path, tmp_path: Path) -> None:
    state, _ = content(ours)
    path = write(tmp_path / "old", state, {"arch": ARCH})
    assert torch.equal(lowbit.load(path).state_dict()["conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize("reader", [lowbit.load, open_backbone])
def test_no_flipped_bit_passes_with_other_weights(ours: Path, tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    data, state = bytearray(ours.read_bytes()), content(ours)[0]
    path, draw = tmp_path / "flipped", torch.Generator().manual_seed(1)
    header = 8 + int.from_bytes(data[:8], "little")
    places = [*torch.randint(0, header, (60,), generator=draw).tolist()]
    places += torch.randint(header, len(data), (60,), generator=draw).tolist()
    for place in places:
        bit = 1 << (place % 8)
        data[place] ^= bit
        path.write_bytes(data)
        data[place] ^= bit
        try:
            opened = reader(path)
        except InputError as error:
            assert "flipped" in str(error) and "\n" not in str(error)
        else:  # of blanks in the header
            model = opened if isinstance(opened, torch.nn.Module) else opened.model
            assert place < header and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


DTYPES = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64, torch.bool]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("signed", [True, False])
def test_other_kinds_are_refused_in_ours(ours: Path, tmp_path: Path, dtype: torch.dtype, signed: bool) -> None:
    state, _ = content(ours)
    state["layer1.0.conv1.weight"] = state["layer1.0.conv1.weight"].to(dtype)
    said = {"arch": ARCH} | ({"digest": digest_of({"arch": ARCH}, state)} if signed else {})
    with pytest.raises(InputError, match=r"layer1\.0\.conv1\.weight holds (half|integers)"):
        lowbit.load(write(tmp_path / "x", state, said))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite(ours: Path, tmp_path: Path, value: float) -> None:
    state, _ = content(ours)
    state["bn1.weight"][3] = value
    with pytest.raises(InputError, match=r"NaN or infinity in state_dict\.bn1\.weight"):
        lowbit.load(write(tmp_path / "x", state, {"arch": ARCH, "digest": digest_of({"arch": ARCH}, state)}))


SAID: dict[str, tuple[Any, str]] = {
    "a number": ({"arch": 5}, "arch is 5"),
    "a list": ({"arch": ["resnet18"]}, "which is no name"),
    "null": ({"arch": None}, "arch is None"),
    "a dict": ({"arch": {"resnet18": 1}}, "which is no name"),
    "none": ({}, "arch is None"),
    "deep": ("[" * 100_000, "too deeply"),
    "deep inside": ('{"arch": ' + "[" * 90 + "]" * 90 + "}", "levels"),
    "a list of all": ("[1]", "is a list"),
    "text": ('"x"', "is a str"),
    "no JSON": ("{", "metadata is damaged"),
    "many digits": ('{"arch": "' + ARCH + '", "x": 1' + "0" * 4000 + "}", "4001 digits"),
    "too many digits": ('{"x": 1' + "0" * 5000 + "}", "metadata is damaged"),
    "NaN": ('{"x": NaN}', "NaN"),
    "another": ({"arch": ARCH, "new": 1}, "checksum"),
    "its digest a list": ({"arch": ARCH, "digest": ["x"]}, "checksum"),
    "an unknown net": ({"arch": "nosuchnet"}, "which net it holds"),
    "another net": ({"arch": "cifar_resnet14_1x1"}, "lacks"),
    "an unknown tag": ({"arch": "resnet18.nosuchtag"}, "nosuchtag"),
    "a long name": ({"arch": "x" * 100_000}, "which net it holds"),
}


@pytest.mark.parametrize("name", SAID)
def test_descriptions_that_we_do_not_write(ours: Path, tmp_path: Path, name: str) -> None:
    said, words = SAID[name]
    with pytest.raises(InputError, match=words) as found:
        lowbit.load(write(tmp_path / "x", content(ours)[0], said))
    assert "\n" not in str(found.value)


def test_a_long_header_is_not_parsed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes((1 << 26).to_bytes(8, "little") + b"{" + b" " * 100)
    for reader in (lowbit.load, read_weights):
        with pytest.raises(InputError, match="describes its tensors in"):
            reader(path)


def test_a_packed_file_is_named_as_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "packed.safetensors"
    safetensors.torch.save_file({"codes": torch.zeros(3, dtype=torch.uint8)}, path, {PACKED: "{}"})
    with pytest.raises(InputError, match=r"packed.safetensors is packed: .* name the file that it was made of$"):
        read_weights(path).choose_arch("resnet18")
    torch.save({"state_dict": {"w": torch.ones(2)}, "metadata": 5}, tmp_path / "other.pth.tar")
    assert read_weights(tmp_path / "other.pth.tar").choose_arch("resnet18") == "resnet18"
