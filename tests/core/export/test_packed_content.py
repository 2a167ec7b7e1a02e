"""Packed files of somebody else's making: every value that a file can hold in another's place is one line."""

import json
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import lowbit
from lowbit.errors import InputError
from lowbit.export.codes import KEY, checksum, read_codes
from lowbit.export.packed import load_packed, save_packed
from lowbit.models.create import create_model
from lowbit.models.surgery import of_kind, replace_
from lowbit.quant.activations import ActivationConfig
from lowbit.quant.conv import QuantLinear
from lowbit.quant.layers import Codes, Grid
from lowbit.quant.places import activation_points, quantize_activations_

RECIPE = {"arch": "cifar_resnet8_1x1", "args": {"num_classes": 3}}
Content = tuple[dict[str, Any], dict[str, Tensor]]


class ThreeBits(nn.Module):
    """Of a weight: 3 bits, one scale."""

    def forward(self, weight: Tensor) -> Tensor:
        return self.codes(weight).values()

    def codes(self, weight: Tensor) -> Codes:
        scale = weight.detach().abs().amax() / 3
        return Codes((weight / scale).round().to(torch.int32), Grid(scale, torch.zeros(()), 3, True))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Content:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("packed") / "net.safetensors"
    net = create_model(RECIPE["arch"], num_classes=3)  # type: ignore[arg-type]
    quantize_activations_(net, activation_points(net), lambda function: ActivationConfig(4, function, "running"))
    replace_(net, {name: QuantLinear(layer, ThreeBits()) for name, layer in of_kind(net, nn.Linear).items()})  # type: ignore[arg-type]
    save_packed(net, path, RECIPE)
    return read_codes(path)


def write(path: Path, head: Any, tensors: dict[str, Tensor], text: str | None = None) -> Path:
    if text is None:
        head = head | {"crc": checksum(head, tensors)} if isinstance(head, dict) else head
        text = json.dumps(head)
    safetensors.torch.save_file(tensors, path, {KEY: text})
    return path


def refused(path: Path, words: str = "x.safetensors") -> None:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=words) as found:
        load_packed(path)
    assert "\n" not in str(found.value) and path.name in str(found.value)
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


HUGE = 10**12
HEADS: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "coded a list": (lambda h: h.update(coded=[1]), "described by name"),
    "coded a number": (lambda h: h.update(coded=4), "described by name"),
    "coded null": (lambda h: h.update(coded=None), "described by name"),
    "coded values": (lambda h: h["coded"].update({"fc.weight": 5}), "described by name"),
    "no coded": (lambda h: h.pop("coded"), "damaged"),
    "no shapes": (lambda h: h.pop("shapes"), "damaged"),
    "shapes a list": (lambda h: h.update(shapes=[[1]]), "another net"),
    "no recipe": (lambda h: h.pop("recipe"), "damaged"),
    "recipe a list": (lambda h: h.update(recipe=[1]), "damaged"),
    "no arch": (lambda h: h["recipe"].pop("arch"), "damaged"),
    "arch null": (lambda h: h["recipe"].update(arch=None), "not allowed"),
    "an unknown tag": (lambda h: h["recipe"].update(arch="resnet18.nosuchtag"), "unknown tag 'nosuchtag'"),
    "a large net": (lambda h: h["recipe"].update(arch="resnet152"), "more than the file can hold"),
    "a giant": (lambda h: h["recipe"].update(arch="vit_giant_patch14_224"), "more than the file can hold"),
    "args a list": (lambda h: h["recipe"].update(args=[1]), "damaged"),
    "args a number": (lambda h: h["recipe"].update(args=1), "damaged"),
    "format true": (lambda h: h.update(format=True), "packed format True"),
    "format a list": (lambda h: h.update(format=[2]), "packed format"),
    "activations a number": (lambda h: h.update(activations=1), "damaged"),
    "activations odd": (lambda h: h.update(activations=[[1, 2]]), "damaged"),
    "sizes a list": (lambda h: h.update(sizes=[1]), "damaged"),
    "sizes of text": (lambda h: h.update(sizes={"conv1": {"out_channels": "8"}}), "damaged"),
    "sizes negative": (lambda h: h.update(sizes={"conv1": {"out_channels": -8}}), "damaged"),
    "bits true": (lambda h: h["coded"]["fc.weight"].update(bits=True), "bits"),
    "bits a float": (lambda h: h["coded"]["fc.weight"].update(bits=3.0), "bits"),
    "bits negative": (lambda h: h["coded"]["fc.weight"].update(bits=-1), "bits"),
    "signed text": (lambda h: h["coded"]["fc.weight"].update(signed="no"), "signed"),
    "scale a number": (lambda h: h["coded"]["fc.weight"].update(scale=3), "damaged"),
    "scale huge": (lambda h: h["coded"]["fc.weight"].update(scale=[HUGE, HUGE]), "damaged"),
    "scale negative": (lambda h: h["coded"]["fc.weight"].update(scale=[-1]), "damaged"),
    "scale of text": (lambda h: h["coded"]["fc.weight"].update(scale=["x"]), "damaged"),
    "zero huge": (lambda h: h["coded"]["fc.weight"].update(zero=1e308), "damaged|infinity"),
    "zero of text": (lambda h: h["coded"]["fc.weight"].update(zero=["x"]), "damaged"),
    "zero a dict": (lambda h: h["coded"]["fc.weight"].update(zero={}), "damaged"),
    "zeros of another number": (lambda h: h["coded"]["fc.weight"].update(zero=[1, 2]), "damaged"),
    "an unknown key": (lambda h: h["coded"].update({"nothing": {"bits": 2}}), "damaged"),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_that_we_do_not_write(packed: Content, tmp_path: Path, name: str) -> None:
    change, words = HEADS[name]
    head = json.loads(json.dumps(packed[0]))
    change(head)
    refused(write(tmp_path / "x.safetensors", head, packed[1]), words)


@pytest.mark.parametrize(
    "argument", ["num_classes", "in_chans", "img_size", "drop_rate", "drop_path_rate", "global_pool"]
)
@pytest.mark.parametrize("value", [-1, HUGE, 2**62, 1.5, "x", None, True, [3], {"a": 1}, [[1]]])
def test_arguments_of_the_net(packed: Content, tmp_path: Path, argument: str, value: Any) -> None:
    head = json.loads(json.dumps(packed[0]))
    head["recipe"]["args"][argument] = value
    path = write(tmp_path / "x.safetensors", head, packed[1])
    if argument == "global_pool" and value == "x":
        return  # what timm makes of it is timm's
    refused(path)


@pytest.mark.parametrize("argument", ["num_classes", "in_chans"])
def test_a_net_that_is_larger_than_its_file(packed: Content, tmp_path: Path, argument: str) -> None:
    head = json.loads(json.dumps(packed[0]))
    head["recipe"] = {"arch": "resnet50", "args": {argument: 10**6 if argument == "num_classes" else 4096}}
    refused(write(tmp_path / "x.safetensors", head, packed[1]), "more than the file can hold")


TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "floats in rows": (lambda t: t.update(floats=t["floats"].reshape(1, -1)), "2 dimensions"),
    "one float": (lambda t: t.update(floats=torch.tensor(1.0)), "0 dimensions"),
    "floats cut": (lambda t: t.update(floats=t["floats"][:-1]), "too early|left over"),
    "more floats": (lambda t: t.update(floats=torch.cat([t["floats"], torch.zeros(1)])), "left over"),
    "floats of integers": (lambda t: t.update(floats=t["floats"].long()), "int64"),
    "floats of 8 bits": (lambda t: t.update(floats=t["floats"].to(torch.float8_e4m3fn)), "float8"),
    "complex floats": (lambda t: t.update(floats=t["floats"].to(torch.complex64)), "complex"),
    "NaN": (lambda t: t["floats"].__setitem__(5, torch.nan), "NaN"),
    "infinity": (lambda t: t["floats"].__setitem__(-1, torch.inf), "infinity"),
    "no floats": (lambda t: t.pop("floats"), "damaged"),
    "codes of int8": (lambda t: t.update(codes=t["codes"].to(torch.int8)), "int8"),
    "codes of int64": (lambda t: t.update(codes=t["codes"].long()), "int64"),
    "codes in rows": (lambda t: t.update(codes=t["codes"].reshape(-1, 1)), "2 dimensions"),
    "codes cut": (lambda t: t.update(codes=t["codes"][:-1]), "damaged"),
    "no codes": (lambda t: t.pop("codes"), "damaged"),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_another_kind(packed: Content, tmp_path: Path, name: str) -> None:
    change, words = TENSORS[name]
    tensors = {key: value.clone() for key, value in packed[1].items()}
    change(tensors)
    head = {key: value for key, value in packed[0].items() if key != "crc"}
    if set(tensors) == {"codes", "floats"}:
        head["crc"] = checksum(head, {key: value.contiguous().reshape(-1) for key, value in tensors.items()})
    refused(write(tmp_path / "x.safetensors", head, tensors, json.dumps(head)), words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "too deeply"),
        ('{"a":' * 50_000, "too deeply"),
        ('{"format": 2, "coded": ' + "[" * 90 + "]" * 90 + "}", "levels"),
        ("[1, 2]", "is a list"),
        ("null", "NoneType"),
        ('{"format": NaN}', "NaN"),
        ('{"format": 1' + "0" * 3000 + "}", "digits"),
        ("{}", "damaged"),
        ("x", "damaged"),
    ],
)
def test_descriptions(packed: Content, tmp_path: Path, text: str, words: str) -> None:
    path = write(tmp_path / "x.safetensors", None, packed[1], text)
    refused(path, words)
    with pytest.raises(InputError):
        read_codes(path)


VALUES = [None, True, -1, 0, 10**18, 2**63, 0.5, 1e300, "", "x" * 1000, [], [1], [[1]], {}, {"a": 1}, ["x"]]


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, one in inner for place in places(one, (*at, key))]


def test_any_value_anywhere(packed: Content, tmp_path: Path) -> None:
    """A value of another kind in any place of the head: refused in one line, or the net is the one that was packed."""
    draw = random.Random(0)
    good = load_packed(write(tmp_path / "good", packed[0], packed[1])).state_dict()
    for _ in range(60):
        head = json.loads(json.dumps(packed[0]))
        *way, last = draw.choice([place for place in places(head) if place != ("crc",)])
        inner = head
        for step in way:
            inner = inner[step]
        inner[last] = draw.choice(VALUES)
        try:
            found = lowbit.load(write(tmp_path / "x.safetensors", head, packed[1])).state_dict()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert set(found) == set(good) and all(value.shape == good[key].shape for key, value in found.items())


def test_a_net_that_diverged_is_not_packed(packed: Content, tmp_path: Path) -> None:
    net: Any = load_packed(write(tmp_path / "good", packed[0], packed[1]))
    replace_(net, {"fc": QuantLinear(net.fc, ThreeBits())})
    net.bn1.bias.data[0] = torch.nan
    with pytest.raises(InputError, match="diverged"):
        save_packed(net, tmp_path / "bad", RECIPE)
    assert not (tmp_path / "bad").exists()
