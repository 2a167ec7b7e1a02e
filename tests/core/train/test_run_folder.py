"""The folder of a run: lock, refusal, what --overwrite removes."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.errors import InputError
from lowbit.files import write_json
from lowbit.train.folder import RunFolder, environment


def test_describes_the_run(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "a" / "b", {"lr": 0.1, "data": Path("x")}) as folder:
        config = json.loads((folder.path / "config.json").read_text())
        folder.write_result({"top1": 50.0})
    assert config["lr"] == 0.1 and config["data"] == "x"
    assert config["environment"]["torch"] and set(config["environment"]) == set(environment())
    assert json.loads((folder.path / "result.json").read_text()) == {"top1": 50.0}


def test_a_folder_that_holds_a_run_is_refused_untouched(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {}).close()
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match="holds a run: start anew with --overwrite"):
        RunFolder.open(tmp_path, {})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    with pytest.raises(InputError, match=r"--overwrite, name another folder$"):  # what can be resumed says so
        RunFolder.check(tmp_path, resume=None)
    RunFolder.open(tmp_path, {}, resume=True).close()


def test_overwrite_removes_the_old_run_alone(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {}).close()
    for name in ("checkpoint.prev.pth.tar", "metrics.jsonl", "sweep.csv", "features.png", "table.md", "notes.txt"):
        (tmp_path / name).write_text("old")
    (tmp_path / "own.bin").write_text("of the method")
    RunFolder.open(tmp_path, {"new": 1}, overwrite=True, files=("own.*", "features.*", "table.md")).close()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".lock", "config.json", "notes.txt"]


def test_a_held_folder_is_refused(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, {}), pytest.raises(InputError, match="another run is writing there"):
        RunFolder.open(tmp_path, {}, resume=True)
    RunFolder.open(tmp_path, {}, resume=True).close()


HOLD = """
import fcntl, sys
with open(sys.argv[1], "ab") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)  # as RunFolder does; importing it takes 3 s
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no record locks there")
def test_that_a_folder_is_busy_is_said_first(tmp_path: Path) -> None:
    """Whatever else is wrong with it, and without disturbing who holds it."""
    RunFolder.open(tmp_path, {}).close()
    line = [sys.executable, "-c", HOLD, str(tmp_path / ".lock")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
        for options in ({}, {"resume": True}, {"overwrite": True, "inputs": (tmp_path / "x",)}):
            for _ in range(2):
                with pytest.raises(InputError, match="another run is writing there"):
                    RunFolder.check(tmp_path, **options)
            with pytest.raises(InputError, match="another run is writing there"):
                RunFolder(tmp_path)
        assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
        other.communicate("")
    assert other.returncode == 0
    with pytest.raises(InputError, match="holds a run"):
        RunFolder.check(tmp_path)
    with RunFolder.open(tmp_path, {}, resume=True), pytest.raises(InputError, match="another run is writing there"):
        RunFolder.check(tmp_path)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        RunFolder.open(tmp_path / "file", {})
    with pytest.raises(InputError, match="cannot be used"):
        RunFolder.open(tmp_path / "file" / "below", {})


def test_train_log(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, {}):
        logging.getLogger("lowbit.any").warning("a word")
    logging.getLogger("lowbit.any").warning("after the end")
    text = (tmp_path / "train.log").read_text()
    assert "a word" in text and "after the end" not in text


def test_overwriting_never_removes_what_is_read(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {"command": "a"}).close()
    read = tmp_path / "sub" / "checkpoint.pth.tar"
    with pytest.raises(InputError, match="would remove"):
        RunFolder.check(tmp_path, overwrite=True, inputs=(None, read))
    RunFolder.check(tmp_path, overwrite=True, inputs=(tmp_path.parent / "checkpoint.pth.tar",))


def test_another_commands_run_is_not_gone_on_with(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, {"command": "train"}).close()
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(InputError, match="holds a run of 'train', not of 'convert'"):
        RunFolder.open(tmp_path, {"command": "convert"}, resume=True)
    assert (tmp_path / "config.json").read_text() == before
    RunFolder.open(tmp_path, {"command": "train"}, resume=True).close()


def test_json_holds_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("inf"), 1.5], "b": {"c": float("nan")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5], "b": {"c": None}}
