"""Checkpoint files: whole or not at all, read without running code."""

import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from lowbit.checkpoint.read import newest_good, read_checkpoint
from lowbit.checkpoint.write import write_checkpoint
from lowbit.errors import InputError
from lowbit.files import previous

NAME = "checkpoint.pth.tar"


def test_reads_what_was_written(tmp_path: Path) -> None:
    state = {"format": 1, "state_dict": {"w": torch.randn(3, 4)}, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}
    write_checkpoint(tmp_path / NAME, state)
    found = read_checkpoint(tmp_path / NAME)
    assert torch.equal(found["state_dict"]["w"], state["state_dict"]["w"])  # type: ignore[index]
    assert found["optimizer"] == state["optimizer"]
    assert [p.name for p in tmp_path.iterdir()] == [NAME]


def test_keeps_the_one_before(tmp_path: Path) -> None:
    for step in range(3):
        write_checkpoint(tmp_path / NAME, {"step": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.prev.pth.tar", NAME]
    assert read_checkpoint(tmp_path / NAME)["step"] == 2
    assert read_checkpoint(previous(tmp_path / NAME))["step"] == 1


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links on this file system")

    monkeypatch.setattr("os.link", refuse)
    for step in range(3):
        write_checkpoint(tmp_path / NAME, {"step": step})
    assert read_checkpoint(previous(tmp_path / NAME))["step"] == 1


def test_killed_at_any_moment_of_a_save(toys: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / NAME, {"step": 0})
    done, steps = 0, []
    for at in range(100):
        code = toys.start(tmp_path / "run", call="save", file=str(tmp_path / NAME), at=at, step=at + 1).codes()[0]
        found = newest_good(tmp_path)
        assert found is not None
        steps.append(found[1]["step"])
        assert steps[-1] in (done, at + 1)
        done = steps[-1]
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert steps[0] == 0 and done == at + 1 and at > 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.prev.pth.tar", NAME]


def test_a_full_disk_leaves_the_last_good_file(toys: Any, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / NAME, {"step": 1})
    run = toys.start(tmp_path / "run", call="save", file=str(tmp_path / NAME), numbers=1_000_000, largest_file=4096)
    assert re.search(r"cannot write .*checkpoint.pth.tar \(4.0 MB\).*last good file", run.wait(2).said())
    assert [p.name for p in tmp_path.iterdir()] == [NAME]
    assert read_checkpoint(tmp_path / NAME)["step"] == 1


def test_a_full_disk_ends_a_run_in_one_line(toys: Any, tmp_path: Path) -> None:
    folder = toys.run(tmp_path / "run", toy="heads", max_steps=2)
    good = (folder / NAME).read_bytes()
    run = toys.start(folder, toy="heads", resume=True, world=2, largest_file=12_000)
    assert run.wait(2, 2).said().startswith("InputError: cannot write")
    assert (folder / NAME).read_bytes() == good


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("harm"),)  # type: ignore[return-value]


@pytest.mark.parametrize(
    "kind", ["truncated", "altered", "foreign", "number", "empty", "code", "nan", "list", "missing", "folder"]
)
def test_refuses(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.pth.tar"
    torch.save({"state_dict": {"w": torch.zeros(100)}}, path)
    words = "damaged"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "altered":  # inside a tensor, which torch.load would take as it is
        whole = path.read_bytes()
        path.write_bytes(whole.replace(bytes(400), bytes(399) + b"?"))
        assert path.stat().st_size == len(whole) and torch.load(path)["state_dict"]["w"][-1] != 0
        words = "checksum"
    elif kind == "foreign":
        path.write_bytes(b"GIF89a and more")
    elif kind == "number":  # of which the unpickler says nothing but this number
        path.write_bytes(b"\x80\x02j\x45\x6f\x6b\x0a.")
        words = "holds something else, or is cut off"
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "code":
        torch.save({"state_dict": Harmful()}, path)
        words = r"holds .*pathlib\.Path beside the weights: save its state_dict alone"
    elif kind == "nan":
        torch.save({"optimizer": {"main": [{"momentum": torch.tensor([0.0, float("nan")])}]}}, path)
        words = r"NaN or infinity in optimizer.main\[0\].momentum"
    elif kind == "list":
        torch.save([1, 2], path)
        words = "holds a list"
    else:
        path.unlink()
        words = "is not a file"
        if kind == "folder":
            path.mkdir()
    with pytest.raises(InputError, match=words) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


def test_newest_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_good(tmp_path) is None
    for step in range(2):
        write_checkpoint(tmp_path / NAME, {"step": step})
    (tmp_path / NAME).write_bytes(b"torn")
    found = newest_good(tmp_path)
    assert found is not None and found[0].name == "checkpoint.prev.pth.tar" and found[1]["step"] == 0
    assert "going on from" in caplog.text
    (tmp_path / NAME).unlink()  # as if killed between two renames where there are no hard links
    assert newest_good(tmp_path) is not None
    previous(tmp_path / NAME).write_bytes(b"torn too")
    with pytest.raises(InputError, match="no good checkpoint"):
        newest_good(tmp_path)


def test_a_diverged_state_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / NAME
    write_checkpoint(path, {"state_dict": {"w": torch.ones(2)}})
    for key in ("state_dict", "optimizer"):
        with pytest.raises(InputError, match=rf"{key}.w holds NaN or infinity"):
            write_checkpoint(path, {"state_dict": {}, key: {"w": torch.tensor([1.0, float("nan")])}})
    assert torch.equal(read_checkpoint(path)["state_dict"]["w"], torch.ones(2))


def test_meters_may_hold_nan(tmp_path: Path) -> None:
    """Of a step that the scaler skipped."""
    nan = torch.tensor([float("nan")])
    write_checkpoint(tmp_path / "x", {"state_dict": {"w": torch.ones(1)}, "ranks": [{"meter": nan}]})
    assert read_checkpoint(tmp_path / "x")["ranks"]


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    victim, folder = tmp_path / "victim", tmp_path / "run"
    folder.mkdir()
    victim.write_text("precious")
    for name in (f".{NAME}.tmp", f".{NAME}.link"):
        (folder / name).symlink_to(victim)
    for step in range(2):
        write_checkpoint(folder / NAME, {"step": step})
    assert victim.read_text() == "precious"
    assert read_checkpoint(folder / NAME)["step"] == 1 and read_checkpoint(previous(folder / NAME))["step"] == 0
    (folder / f".{NAME}.tmp").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_checkpoint(folder / NAME, {"step": 2})
