"""Checkpoints of bits with entries of another kind: one line for every reader, before anything is built or written."""

import random
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import lowbit
from bsq import checkpoint
from bsq.activation import quantize_bsq_activations_
from bsq.network import to_bits_
from lowbit.errors import InputError
from lowbit.models.create import create_model, picture_settings

ARCH = "cifar_resnet8_1x1"


@pytest.fixture(scope="module")
def saved() -> dict[str, Any]:
    """A checkpoint of bits that says all it can."""
    torch.manual_seed(0)
    net = to_bits_(quantize_bsq_activations_(create_model(ARCH, num_classes=4), 4), 3)
    facts = {"arch": ARCH, "classes": 4, "pictures": picture_settings(net), "input_size": [3, 32, 32]}
    header = checkpoint.header(net, **facts)
    return header | {"state_dict": checkpoint.state_dict(net), "min_bits": {"conv1": 2}}


def written(content: Any, folder: Path) -> Path:
    torch.save(content, folder / "x.pth.tar")
    return folder / "x.pth.tar"


def refused(path: Path, words: str) -> None:
    for reader in (lowbit.load, checkpoint.read):
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
        with pytest.raises(InputError, match=words) as found:
            reader(path)
        assert "\n" not in str(found.value) and "x.pth.tar" in str(found.value)
        assert time.monotonic() - start < 10
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_the_good_one_is_read(saved: dict[str, Any], tmp_path: Path) -> None:
    path = written(saved, tmp_path)
    assert lowbit.load(path)(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    found = checkpoint.read(path)
    assert found.pictures == saved["pictures"] and found.input_size == (3, 32, 32) and found.floors == {"conv1": 2}
    assert found.activations is not None and {c.bits for c in found.activations.values()} == {4}


T = torch.ones(2)
ENTRIES = [
    ("classes", -1), ("classes", 0), ("classes", 10**7), ("classes", 2**40), ("classes", "4"), ("classes", 4.0),
    ("classes", True), ("classes", T), ("classes", [4]),
    ("arch", T), ("arch", None), ("arch", 5), ("arch", ["resnet18"]), ("arch", ""), ("arch", "x" * 5000),
    ("package", T), ("package", ["bsq"]), ("package", 5),
    ("pictures", T), ("pictures", 5), ("pictures", [1]), ("pictures", {}), ("pictures", "x"),
    ("min_bits", T), ("min_bits", 5), ("min_bits", {"conv1": 0}), ("min_bits", {"conv1": T}), ("min_bits", {1: 1}),
    ("min_bits", {"conv1": "2"}), ("min_bits", {"conv1": 99}), ("min_bits", [1]),
    ("activations", T), ("activations", 5), ("activations", [1]), ("activations", {"relu": 1}),
    ("activations", {"relu": {"bits": T}}), ("activations", {"relu": {"bits": 4, "function": T}}),
    ("activations", {"relu": {"bits": 4, "range": ["batch"]}}), ("activations", {"relu": {"bits": 4.5}}),
    ("activations", {"relu": {"bits": 4, "new": 1}}), ("activations", {1: {"bits": 4}}),
    ("activations", {"relu": {1: 4}}), ("input_size", T), ("input_size", 5), ("input_size", [3, 32]),
    ("input_size", [3, -1, 32]),
    ("input_size", [3, 4097, 32]), ("input_size", [3, True, 32]), ("input_size", ["3", "32", "32"]),
    ("state_dict", T), ("state_dict", []), ("state_dict", {}), ("state_dict", {"a": 1}), ("state_dict", {1: T}),
    ("format", T), ("format", "1"), ("format", 99), ("format", None), ("format", True + 98),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), ENTRIES)
def test_entries_of_another_kind(saved: dict[str, Any], tmp_path: Path, name: str, value: Any) -> None:
    words = "(?i)activation|keywords" if name == "activations" else name
    refused(written(saved | {name: value}, tmp_path), words)


PICTURES = [
    ("std", [0.0, 0.1, 0.1]), ("std", [-1.0, 1.0, 1.0]), ("std", [float("nan")] * 3), ("std", [0.1]), ("std", 0.1),
    ("std", T), ("std", None), ("std", ["0.1"] * 3), ("mean", [float("inf"), 0.0, 0.0]), ("mean", [0.1] * 4),
    ("mean", [T, T, T]), ("input_size", [3, 0, 0]), ("input_size", [3, 10**9, 10**9]), ("input_size", 224),
    ("interpolation", 3), ("interpolation", None), ("interpolation", T), ("crop_pct", 0), ("crop_pct", -1.0),
    ("crop_pct", 1e-300), ("crop_pct", float("nan")), ("crop_pct", "x"), ("crop_mode", 3), ("crop_mode", T),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), PICTURES)
def test_nonsense_about_pictures(saved: dict[str, Any], tmp_path: Path, name: str, value: Any) -> None:
    refused(written(saved | {"pictures": saved["pictures"] | {name: value}}, tmp_path), f"pictures.{name}")


@pytest.mark.parametrize("name", ["std", "mean", "input_size", "interpolation", "crop_pct"])
def test_pictures_without_an_entry(saved: dict[str, Any], tmp_path: Path, name: str) -> None:
    pictures = {key: value for key, value in saved["pictures"].items() if key != name}
    refused(written(saved | {"pictures": pictures}, tmp_path), f"pictures.{name}")


def test_a_state_with_and_without_the_wrapper(saved: dict[str, Any], tmp_path: Path) -> None:
    state = saved["state_dict"]
    both = state | {"bn1.weight": state["module.bn1.weight"] + 1}
    refused(written(saved | {"state_dict": both}, tmp_path), r"both bn1\.weight and module\.bn1\.weight")


@pytest.mark.parametrize(("name", "value"), [("arch", "vit_giant_patch14_224"), ("classes", 10**6)])
def test_a_net_that_its_file_cannot_hold(saved: dict[str, Any], tmp_path: Path, name: str, value: Any) -> None:
    path, before = written(saved | {name: value}, tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"than the file can hold|fit|shape"):
        lowbit.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_an_unknown_tag(saved: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown tag 'nosuchtag'"):
        lowbit.load(written(saved | {"arch": "resnet18.nosuchtag"}, tmp_path))


VALUES: list[Callable[[], Any]] = [
    lambda: None, lambda: True, lambda: -1, lambda: 2**62, lambda: 0.5, lambda: float("nan"), lambda: "x", lambda: [],
    lambda: [1], lambda: {}, lambda: {1: 2}, lambda: {"a": T}, lambda: T, lambda: T.bool(), lambda: torch.zeros(()),
    lambda: torch.zeros(0), lambda: T.to(torch.float16), lambda: T.to(torch.complex64), lambda: (1, "x"),
]  # fmt: skip


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at] * bool(at) + [place for key, one in inner for place in places(one, (*at, key))]


def copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: copied(one) for key, one in value.items()}
    return [copied(one) for one in value] if isinstance(value, list) else value


def test_any_value_anywhere(saved: dict[str, Any], tmp_path: Path) -> None:
    """Refused in one line, or a net with the shapes of the good one."""
    draw, good = random.Random(0), lowbit.load(written(saved, tmp_path)).state_dict()
    for _ in range(60):
        content: Any = copied(saved)
        *way, last = draw.choice(places(content))
        inner = content
        for step in way:
            inner = inner[step]
        inner[last] = draw.choice(VALUES)()
        try:
            found: dict[str, Tensor] = lowbit.load(written(content, tmp_path)).state_dict()
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert {key: value.shape for key, value in found.items() if key in good}
