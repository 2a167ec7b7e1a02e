"""A run that was killed or stopped and resumed equals one that was not: tensors, optimizer state, lines of metrics."""

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

TOYS = ("heads", "two_optimizers", "swap", "queue", "two_stages")
COMMON: dict[str, Any] = {"dropout": 0.3, "dtype": "float32", "save_every": 7}


def broken(toys: Any, folder: Path, at: int, codes: list[int], *, do: str = "SIGKILL", **settings: Any) -> Path:
    """A run that ends itself after batch `at`, then a second one that goes on."""
    toys.begin(**settings)
    toys.start(folder, do=do, at=at, **settings).wait(*codes)
    return toys.run(folder, resume=True, **settings)


@pytest.mark.parametrize("toy", TOYS)
def test_killed(toys: Any, same: Any, tmp_path: Path, toy: str) -> None:
    """Without batch norm; with it below."""
    settings = {"toy": toy, "bn": False, **COMMON}
    folder = broken(toys, tmp_path / "run", 17, [-signal.SIGKILL], **settings)
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.parametrize("toy", TOYS)
def test_killed_while_reading_files(toys: Any, same: Any, tmp_path: Path, toy: str) -> None:
    """Two workers read; the run goes on with none, and with two."""
    settings = {"toy": toy, "bn": True, "files": toys.files(), **COMMON}
    toys.begin(**settings)
    folder, copy = tmp_path / "run", tmp_path / "copy"
    toys.start(folder, do="SIGKILL", at=12, workers=2, **settings).wait(-signal.SIGKILL)
    shutil.copytree(folder, copy)
    resumed = [toys.start(at, resume=True, workers=n, **settings) for at, n in ((folder, 0), (copy, 2))]
    for run in resumed:
        run.wait(0)
    for at in (folder, copy):
        same.resumed(toys.unbroken(**settings), at)


@pytest.mark.slow
@pytest.mark.parametrize("bn", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [3, 9, 17, 26])
def test_killed_series(toys: Any, same: Any, tmp_path: Path, toy: str, bn: bool, workers: int, at: int) -> None:
    settings = {"toy": toy, "bn": bn, "files": toys.files(), **COMMON, "save_every": 2}
    folder = broken(toys, tmp_path / "run", at, [-signal.SIGKILL], workers=workers, **settings)
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_killed_at_any_wall_time_until_it_is_done(toys: Any, same: Any, tmp_path: Path, seed: int) -> None:
    settings = {"toy": TOYS[seed], "bn": True, "files": toys.files(), **COMMON, "save_every": 2}
    folder, chance, kills = tmp_path / "run", random.Random(seed), 0
    while True:
        started = toys.start(folder, resume=True, workers=2, do="mark", at=-1, slow=0.05, **settings)
        time.sleep(chance.uniform(0.5, 1.5))
        os.kill(started.pids[0], signal.SIGKILL)
        (code,) = started.codes()
        if code == 0:
            break
        assert code == -signal.SIGKILL, started.said(stream="err")
        kills += 1
    assert kills > 1
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_on_several_ranks(toys: Any, same: Any, tmp_path: Path, world: int) -> None:
    settings = {"toy": "queue", "bn": True, "world": world, **COMMON}
    ranks = list(range(world))
    folder = broken(toys, tmp_path / "run", 17, [-signal.SIGKILL] * world, ranks=ranks, **settings)
    same.resumed(toys.unbroken(**settings), folder)


def test_buffers_of_each_rank_come_back(toys: Any, same: Any, tmp_path: Path) -> None:
    """Batch norm without synchronisation: every rank has statistics of its own, and no broadcast may undo that."""
    settings = {"toy": "two_stages", "bn": "local", "world": 2, **COMMON}
    folder = broken(toys, tmp_path / "run", 17, [-signal.SIGKILL] * 2, ranks=[0, 1], **settings)
    same.resumed(toys.unbroken(**settings), folder)
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]
    assert not torch.equal(ranks[0]["trunk.1.running_mean"], ranks[1]["trunk.1.running_mean"])


def test_sigterm(toys: Any, same: Any, tmp_path: Path) -> None:
    """Saved at once: far from any regular save."""
    settings = {"toy": "two_stages", "bn": True, **COMMON, "save_every": None}
    toys.begin(**settings)
    folder = tmp_path / "run"
    toys.start(folder, do="SIGTERM", at=14, **settings).wait(75)
    assert torch.load(folder / "checkpoint.pth.tar")["step"] == 14
    toys.run(folder, resume=True, **settings)
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_sigterm_to_one_rank(toys: Any, same: Any, tmp_path: Path, rank: int) -> None:
    settings = {"toy": "queue", "bn": True, "world": 2, **COMMON, "save_every": None}
    folder = broken(toys, tmp_path / "run", 14, [75, 75], do="SIGTERM", ranks=[rank], **settings)
    same.resumed(toys.unbroken(**settings), folder)


def test_sigterm_to_the_group_while_workers_run(toys: Any, same: Any, tmp_path: Path) -> None:
    settings = {"toy": "swap", "bn": True, "files": toys.files(), **COMMON, "save_every": None}
    toys.begin(**settings)
    folder, mark = tmp_path / "run", tmp_path / "mark"
    started = toys.start(folder, do="mark", at=12, mark=str(mark), slow=0.05, workers=2, **settings)
    wait_for(mark)
    os.killpg(started.pids[0], signal.SIGTERM)
    started.wait(75)
    toys.run(folder, resume=True, workers=2, **settings)
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_inside_an_evaluation(toys: Any, same: Any, tmp_path: Path, world: int) -> None:
    settings = {"toy": "queue", "bn": True, "world": world, **COMMON, "save_every": None}
    toys.begin(**settings)
    folder, mark = tmp_path / "run", tmp_path / "mark"
    started = toys.start(folder, slow_probe=True, mark_probe=str(mark), **settings)
    wait_for(mark)
    os.kill(started.pids[-1], signal.SIGTERM)
    started.wait(*[75] * world)
    assert torch.load(folder / "checkpoint.pth.tar")["position"] == {"stage": 0, "epoch": 0, "step": 9, "done": 9}
    toys.run(folder, resume=True, **settings)
    same.resumed(toys.unbroken(**settings), folder)


def wait_for(mark: Path) -> None:
    for _ in range(600):
        if mark.exists():
            return
        time.sleep(0.05)
    raise AssertionError("the run did not come so far in 30 s")


@pytest.mark.parametrize("damage", ["torn", "empty"])
def test_torn_newest_checkpoint(toys: Any, same: Any, tmp_path: Path, damage: str) -> None:
    settings = {"toy": "two_optimizers", "bn": True, **COMMON}
    folder = tmp_path / "run"
    toys.start(folder, do="SIGKILL", at=17, **settings).wait(-signal.SIGKILL)
    newest = folder / "checkpoint.pth.tar"
    data = newest.read_bytes()
    newest.write_bytes(data[: len(data) // 2] if damage == "torn" else b"")
    assert torch.load(folder / "checkpoint.prev.pth.tar")["step"] == 9  # before `begin_epoch`
    toys.run(folder, resume=True, **settings)
    same.resumed(toys.unbroken(**settings), folder)


@pytest.mark.parametrize("steps", [1, 9, 13])
def test_max_steps_stops_and_a_resume_goes_on(toys: Any, same: Any, tmp_path: Path, steps: int) -> None:
    settings = {"toy": "swap", "bn": False, **COMMON, "save_every": None}
    folder = toys.run(tmp_path / "run", max_steps=steps, **settings)
    assert torch.load(folder / "checkpoint.pth.tar")["step"] == steps
    toys.run(folder, resume=True, **settings)
    same.resumed(toys.unbroken(**settings), folder)


def test_a_finished_run_does_nothing_and_says_so(toys: Any, tmp_path: Path) -> None:
    settings = {"toy": "swap", **COMMON}
    folder = toys.run(tmp_path / "run", **settings)
    files = ("checkpoint.pth.tar", "metrics.jsonl", "model_best.pth.tar")
    before = [(folder / name).read_bytes() for name in files]
    again = toys.start(folder, resume=True, **settings)
    assert "nothing to do" in again.wait(0).said(stream="err")
    assert [(folder / name).read_bytes() for name in files] == before


def test_the_best_checkpoint_can_be_resumed_too(toys: Any, same: Any, tmp_path: Path) -> None:
    """It is written between the probes and `end_stage`, of the last epoch here, and stands before both."""
    settings = {"toy": "swap", "bn": True, **COMMON}
    unbroken = toys.unbroken(**settings)
    folder = tmp_path / "run"
    shutil.copytree(unbroken, folder)
    shutil.copy(folder / "model_best.pth.tar", folder / "checkpoint.pth.tar")
    assert torch.load(folder / "checkpoint.pth.tar")["position"]["step"] == 9
    toys.run(folder, resume=True, **settings)
    same.resumed(unbroken, folder)


def test_other_ranks_are_allowed_and_said(toys: Any, same: Any, tmp_path: Path) -> None:
    settings = {"toy": "queue", "bn": True, "save_every": 7}
    folder = tmp_path / "run"
    toys.start(folder, do="SIGKILL", at=17, ranks=[0, 1], world=2, **settings).wait(*[-signal.SIGKILL] * 2)
    again = toys.start(folder, resume=True, world=3, **settings).wait(0, 0, 0)
    assert "processes 3 after 2" in again.said(stream="err")
    same.split(toys.unbroken(**settings), folder, 1e-9)


def test_another_seed_is_refused(toys: Any, tmp_path: Path) -> None:
    folder = toys.run(tmp_path / "run", toy="queue", max_steps=2)
    again = toys.start(folder, toy="queue", resume=True, seed=4, world=2)
    assert "seed 3, this run has 4" in again.wait(2, 2).said()


def test_a_folder_that_another_run_holds(toys: Any, tmp_path: Path) -> None:
    folder, mark = tmp_path / "run", tmp_path / "mark"
    first = toys.start(folder, toy="queue", do="mark", at=1, mark=str(mark), slow=0.2)
    wait_for(mark)
    for resume in (True, False):
        second = toys.start(folder, toy="queue", resume=resume)
        assert "another run is writing there" in second.wait(2).said()
    os.kill(first.pids[0], signal.SIGTERM)
    first.wait(75)
