"""Binary tensors at one bit a value in checkpoint files: equal again to the bit, and damage is one line."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.checkpoint.binary import ENTRY, pack, unpack
from lowbit.checkpoint.read import read_checkpoint
from lowbit.checkpoint.write import write_checkpoint
from lowbit.errors import InputError


def state(dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(0)
    planes = (torch.rand(2, 5, 33, 3, 3) > 0.5).to(dtype).movedim(1, -1)  # as training holds them: strided views
    weights = {
        "p": planes[0], "n": planes[1], "w": torch.randn(40, 40, dtype=dtype), "few": torch.ones(3, dtype=dtype),
        "late": torch.cat([torch.ones(2000), torch.tensor([0.5])]).to(dtype), "minus": -torch.zeros(2000, dtype=dtype),
        "ids": torch.ones(2000, dtype=torch.int64),
        "gamma": torch.ones(2000, dtype=dtype), "beta": torch.zeros(2000, dtype=dtype),  # of an untrained batch norm
    }  # fmt: skip
    return {"package": "t", "state_dict": weights, "epoch": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_the_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    before = state(dtype)
    before["state_dict"]["p"] = torch.ones(33, 8, 3, 3, 5, dtype=dtype)
    before["state_dict"]["p"][0] = 0
    write_checkpoint(tmp_path / "c.pth.tar", before)
    held = torch.load(tmp_path / "c.pth.tar", weights_only=True)
    assert list(held[ENTRY]) == ["p", "n"] and held["state_dict"]["p"].numel() == 33 * 9 * 5
    after = read_checkpoint(tmp_path / "c.pth.tar")
    assert list(after) == list(before) and list(after["state_dict"]) == list(before["state_dict"])
    for key, value in before["state_dict"].items():
        found = after["state_dict"][key]
        assert found.dtype == value.dtype and torch.equal(found, value), key
        assert torch.equal(torch.signbit(found), torch.signbit(value)), key


def test_views_are_packed_in_order() -> None:
    before = state()
    before["state_dict"] = {"p": (torch.rand(8, 33, 3, 3) > 0.5).float().movedim(0, -1)}
    held = pack(before)
    assert held["state_dict"]["p"].dtype == torch.uint8
    assert torch.equal(unpack(held)["state_dict"]["p"], before["state_dict"]["p"])


def test_files_in_an_authors_layout_stay(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "a.pth.tar", {"state_dict": {"w": torch.ones(5000)}})
    assert torch.load(tmp_path / "a.pth.tar", weights_only=True)["state_dict"]["w"].dtype == torch.float32


@pytest.mark.parametrize(
    "said",
    [
        3, {"p": 3}, {"p": []}, {"p": ["float32"]}, {"p": ["int8", 40, 40]}, {"p": ["float32", -40, -40]},
        {"q": ["float32", 2]}, {"p": ["float32", 10**6, 10**6]}, {"p": ["float32", 40, 40.0]}, {"w": ["float32", 40]},
        {3: ["float32", 8]},
    ],
)  # fmt: skip
def test_damage_is_one_line(tmp_path: Path, said: Any) -> None:
    bits = {"p": torch.zeros(200, dtype=torch.uint8), "w": torch.zeros(5)}
    torch.save({"package": "t", "state_dict": bits, ENTRY: said}, tmp_path / "x.pth.tar")
    with pytest.raises(InputError, match="is damaged"):
        read_checkpoint(tmp_path / "x.pth.tar")
