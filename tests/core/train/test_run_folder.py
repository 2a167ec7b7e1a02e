"""The folder of a run: lock, refusal, what --overwrite removes."""

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lowbit.checkpoint.read import newest_good
from lowbit.checkpoint.write import Names, write_checkpoint
from lowbit.errors import InputError, Stopped
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


def test_a_path_of_thousands_of_levels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (Path("a/" * 2000), tmp_path / ("b/" * 300)):
        with pytest.raises(InputError, match="more than 256 levels of folders"):
            RunFolder.check(path)
    with RunFolder(tmp_path / ("c/" * 200)) as folder:
        assert folder.path.is_dir()


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


def names(folder: Path) -> list[str]:
    return sorted(found.name for found in folder.iterdir())


@pytest.mark.parametrize("config", [None, "{}", '{"architectures": ["Bert"]}', "[1]"])
def test_overwrite_deletes_nothing_where_no_run_is(tmp_path: Path, config: str | None) -> None:
    for name in ("checkpoint.pth.tar", "model_best.pth.tar", "teacher.pth.tar", "table.md", "metrics.jsonl"):
        (tmp_path / name).write_text("somebody's")
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(InputError, match=r"config.json describes no run of this program.*name another folder"):
            RunFolder.open(tmp_path, {}, overwrite=True, files=("table.md",))
        with pytest.raises(InputError, match="describes no run"):
            RunFolder.open(tmp_path, {}, resume=True)
        assert (tmp_path / "config.json").read_text() == config
        return
    before = names(tmp_path)
    RunFolder.open(tmp_path, {}, overwrite=True, files=("table.md",)).close()
    assert names(tmp_path) == [".lock", *before[:1], "config.json", *before[1:]]
    (tmp_path / "config.json").write_text((tmp_path / "config.json").read_text()[:20])  # torn: a run's still
    RunFolder.open(tmp_path, {}, overwrite=True, files=("table.md",)).close()
    assert names(tmp_path) == [".lock", "config.json", "teacher.pth.tar"]


@pytest.mark.parametrize("name", ["checkpoint.pth.tar", "model_best.pth.tar", "checkpoint_0199.pth.tar"])
def test_a_training_writes_over_nobodys_weights(tmp_path: Path, name: str) -> None:
    """As the authors' programs leave them, which write where they are started."""
    (tmp_path / name).write_text("somebody's")
    for ask in (RunFolder.check, lambda path, **options: RunFolder.open(path, {}, **options)):
        with pytest.raises(InputError, match=rf"{name} of another program.*with --overwrite"):
            ask(tmp_path, resume=False)
    assert names(tmp_path) == [name]
    RunFolder.check(tmp_path)  # what trains nothing
    RunFolder.check(tmp_path, resume=True)
    RunFolder.open(tmp_path, {}, resume=False, overwrite=True).close()
    RunFolder.check(tmp_path, resume=False, overwrite=True)


RUN_NAMES = (
    "config.json", "metrics.jsonl", "train.log", "result.json", "checkpoint.pth.tar", "checkpoint.prev.pth.tar",
    "model_best.pth.tar", "checkpoint_0020.pth.tar", ".lock", ".checkpoint.pth.tar.tmp", "own.bin",
)  # fmt: skip


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a device", "symbolic links", "a link to nothing"])
@pytest.mark.parametrize("name", RUN_NAMES)
def test_what_a_runs_file_would_meet(tmp_path: Path, name: str, kind: str) -> None:
    """Found before it is opened, whatever was asked for; a FIFO and a device through a link, too."""
    place = tmp_path / name
    if kind == "a folder":
        (place / "inside").mkdir(parents=True)
    elif kind == "a FIFO":
        os.mkfifo(tmp_path / "pipe")
        place.symlink_to(tmp_path / "pipe")
    else:
        place.symlink_to({"a device": "/dev/full", "symbolic links": place}.get(kind, tmp_path / "elsewhere"))
    before = names(tmp_path)
    for asked in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(InputError, match=rf"{re.escape(name)} there cannot be a run's file \(.*{kind}") as caught:
            RunFolder.check(tmp_path, files=("own.*",), **asked)
        with pytest.raises(InputError):
            RunFolder.open(tmp_path, {}, files=("own.*",), **asked)
        assert "\n" not in str(caught.value) and names(tmp_path) == before


def test_what_a_folder_of_checkpoints_would_meet(tmp_path: Path) -> None:
    """Files in a folder of their own need one there, or nothing; temporary ones lie beside them."""
    place, files = tmp_path / "checkpoint", ("checkpoint/*.pth",)
    RunFolder.check(tmp_path, files=files)
    for make in (place.touch, lambda: place.symlink_to("nothing"), lambda: os.mkfifo(place)):
        make()
        with pytest.raises(InputError, match="checkpoint there is no folder"):
            RunFolder.check(tmp_path, files=files)
        place.unlink()
    place.mkdir()
    for name in ("last.pth", ".last.pth.tmp"):
        RunFolder.check(tmp_path, files=files)
        os.mkfifo(place / name)
        with pytest.raises(InputError, match="cannot be a run's file"):
            RunFolder.check(tmp_path, files=files)
        (place / name).unlink()


def test_a_lock_that_is_a_fifo_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(InputError, match="it is a FIFO"):
        RunFolder(tmp_path)


def test_paths_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    for place, reason in [
        (tmp_path / ("n" * 256), "File name too long"),
        (tmp_path / ("n" * 256) / "below", "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
        (tmp_path / "loop" / "below", "Too many levels of symbolic links"),
        (tmp_path / "nothing", "a link to nothing"),
        (tmp_path / "file" / "below", "Not a directory"),
        (Path("a\0b"), "null"),
    ]:
        for use in (RunFolder.check, lambda at: RunFolder.open(at, {})):
            with pytest.raises(InputError, match=rf"--output .*{reason}.*name another folder"):
                use(place)
    before = names(tmp_path)
    monkeypatch.setattr(os, "access", lambda place, mode: False)  # root may do all
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "below"):
        with pytest.raises(InputError, match=r"cannot be used: Permission denied \(.* searched\)"):
            RunFolder.check(place)
    assert names(tmp_path) == before


@pytest.mark.parametrize("error", [InputError, ValueError])
def test_a_run_that_ends_before_it_began_leaves_the_folder_as_it_was(tmp_path: Path, error: type[Exception]) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").touch()
    for place in (tmp_path / "new" / "run", tmp_path / "there"):
        with pytest.raises(error), RunFolder.open(place, {}):
            logging.getLogger("lowbit.any").warning("a word")
            raise error("too many unreadable pictures")
    assert names(tmp_path) == ["there"] and names(tmp_path / "there") == ["notes.txt"]


@pytest.mark.parametrize("kept", ["metrics.jsonl", "checkpoint.pth.tar", "stage"])
def test_what_a_run_kept_stays(tmp_path: Path, kept: str) -> None:
    with pytest.raises(InputError), RunFolder.open(tmp_path, {}) as folder:
        if kept == "stage":
            RunFolder.open(folder.path / kept, {}).close()
        else:
            (folder.path / kept).write_text("a line")
        raise InputError("the loss became NaN")
    assert names(tmp_path) == sorted([".lock", "config.json", kept])
    with pytest.raises(InputError), RunFolder.open(tmp_path, {}, resume=True):
        raise InputError("again")
    with pytest.raises(Stopped), RunFolder.open(tmp_path / "other", {}):
        raise Stopped("after a signal it is to be gone on with")
    assert "config.json" in names(tmp_path) and "config.json" in names(tmp_path / "other")


def test_checkpoints_under_other_names(tmp_path: Path) -> None:
    """Also in a folder inside; --overwrite removes them, what a run kept there stays after an error."""
    given = Names("inside/last.pth", "inside/best.pth")
    with pytest.raises(InputError), RunFolder.open(tmp_path, {}, names=given) as folder:
        write_checkpoint(folder.checkpoint, {"step": 1})
        write_checkpoint(folder.checkpoint, {"step": 2})
        raise InputError("the loss became NaN")
    assert names(tmp_path) == [".lock", "config.json", "inside"]
    assert names(tmp_path / "inside") == ["last.prev.pth", "last.pth"]
    found = newest_good(tmp_path, given.last)
    assert found is not None and found[1]["step"] == 2
    RunFolder.open(tmp_path, {}, overwrite=True, names=given).close()
    assert names(tmp_path / "inside") == []
