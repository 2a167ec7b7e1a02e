"""Small files that expand, and files that are no files: each refused in one line, in little time and memory."""

import io
import os
import resource
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.checkpoint import budget
from lowbit.checkpoint.read import is_safetensors, newest_good, read_checkpoint
from lowbit.errors import InputError
from lowbit.models.weight_file import read_weights


def shared_lists(levels: int) -> Any:
    value: Any = [0]
    for _ in range(levels):
        value = [value, value]
    return value


def shared_dicts(levels: int) -> Any:
    value: Any = {"x": 0}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return value


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


CONTENTS: dict[str, tuple[Callable[[], Any], str]] = {
    "expanded": (lambda: {"state_dict": {"w": torch.zeros(1).expand(10**12)}}, "views"),
    "many views": (lambda: {"state_dict": [torch.zeros(1000).expand(1000, 1000)] * 50}, "views"),
    "shared lists": (lambda: {"config": shared_lists(34)}, "values"),
    "shared dicts": (lambda: {"config": shared_dicts(40)}, "values"),
    "nested": (lambda: {"config": nested(300)}, "levels"),
    "cycle": (cycle, "levels|itself"),
    "huge number": (lambda: {"step": 2**200}, "bits in step"),
    "huge key": (lambda: {"optimizer": {2**200: 1}}, "bits in a key"),
    "meta": (lambda: {"state_dict": {"w": torch.zeros(2, device="meta")}}, "without values"),
    "sparse": (lambda: {"state_dict": {"w": torch.eye(3).to_sparse()}}, "sparse"),
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("reader", [read_checkpoint, read_weights])
def test_content_that_expands_is_refused(tmp_path: Path, name: str, reader: Callable[[Path], Any]) -> None:
    make, words = CONTENTS[name]
    path = tmp_path / "given.pth.tar"
    torch.save(make(), path)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    with pytest.raises(InputError, match=words):
        reader(path)
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # kB


def test_what_tensors_really_share_is_read(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    state = {"state_dict": {"a": weight, "b": weight.T, "c": weight[:10]}, "notes": [None, 1.5, "x", True, (1, 2)]}
    torch.save(state, tmp_path / "x")
    assert torch.equal(read_checkpoint(tmp_path / "x")["state_dict"]["b"], weight.T)


class Calls:
    """A pickle that calls a harmless name with what costs."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("function", [list, tuple, frozenset])
def test_a_range_does_not_become_values(tmp_path: Path, function: Any) -> None:
    torch.save({"x": Calls(function, range(10**12))}, tmp_path / "x")
    with pytest.raises(InputError, match=r"range|damaged"):
        read_checkpoint(tmp_path / "x")


def rewritten(path: Path, compress: int, **more: bytes) -> Path:
    """The archive again, with other records."""
    other = path.with_name("rewritten")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", compress) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, more.get(entry.filename.rpartition("/")[2], old.read(entry)))
    return other


def test_records_that_are_larger_than_their_file(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "x")
    bomb = rewritten(tmp_path / "x", zipfile.ZIP_DEFLATED, **{"0": bytes(1 << 28)})
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(InputError, match="expands from"):
        read_checkpoint(bomb)


def test_a_description_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "MOST_PICKLE", 1000)
    torch.save({str(number): number for number in range(1000)}, tmp_path / "x")
    with pytest.raises(InputError, match="describes its tensors"):
        read_checkpoint(tmp_path / "x")


def test_old_files_without_an_archive_are_walked_too(tmp_path: Path) -> None:
    torch.save({"config": shared_lists(34)}, tmp_path / "x", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="values"):
        read_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "loop", "long", "null"])
def test_what_is_no_file_is_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "checkpoint.pth.tar"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "long":
        path = tmp_path / ("x" * 300)
    else:
        path = Path(f"{tmp_path}/x\0y")
    for reader in (read_checkpoint, read_weights):
        with pytest.raises(InputError, match=r"is not a file|cannot be opened"):
            reader(path)
    assert not is_safetensors(path)


def test_a_pipe_in_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "checkpoint.pth.tar")
    with pytest.raises(InputError, match="no good checkpoint"):
        newest_good(tmp_path)


def test_half_precision_in_our_own_files_is_refused() -> None:
    from lowbit.checkpoint.check import check_kinds

    own = {"w": torch.zeros(2)}
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool, torch.complex64):
        with pytest.raises(InputError, match="w holds"):
            check_kinds({"w": torch.zeros(2).to(dtype)}, own)
    check_kinds({"w": torch.zeros(2, dtype=torch.float64)}, own)


def test_infinities_of_eight_bits_are_seen(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"w": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)}}, buffer)
    (tmp_path / "x").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="NaN"):
        read_checkpoint(tmp_path / "x")
