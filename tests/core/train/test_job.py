"""A training command of a toy, from its options to `result.json`."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch.optim import SGD

from lowbit.checkpoint.read import read_checkpoint
from lowbit.data.loader import Loader
from lowbit.data.recipe import DIGITS, plain
from lowbit.errors import InputError
from lowbit.options import RunOptions
from lowbit.train.batch import of_job, per_process
from lowbit.train.job import Job, read_start
from lowbit.train.loop import Result
from lowbit.train.protocol import Clock, Objective, Stage
from lowbit.train.schedule import constant
from lowbit.train.session import Session
from lowbit.train.supervised import Supervised

PICTURES = 50


def command(
    output: Path | None, *, batch: int = 16, norm: bool = False, lr: float = 0.1, frozen: bool = False, epochs: int = 2,
    name: str = "train", **options: Any,
) -> Result | None:  # fmt: skip
    """Train one linear layer on a few digits."""
    shared = RunOptions(output=output, limit_train=PICTURES, workers=0, **options)
    with Session("toy", shared, "digits") as session:
        start = read_start(session)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192) if norm else nn.Identity(), nn.Linear(192, 10))
        objective = Supervised(net, lambda student: SGD(student.parameters(), lr=1))
        objective.frozen = ("student.1",) if frozen else ()
        plan = of_job(batch, session.accelerator.num_processes, accumulate=shared.accumulate)
        pictures = session.pictures("train")
        loader = Loader(pictures, plain(DIGITS), global_batch=plan.total, seed=0, **session.loader_options())
        job = Job(
            session, name, [Stage(objective, epochs, {"main": constant(lr)})], loader, plan,
            header={"format": 1, "package": "toy", "arch": "linear"}, shared={"--lr": lr},
            described={"lr": lr}, facts={"classes": 10}, prefixes={"student.": ""}, start=start,
            extra=lambda objective, figures: {"width": 192}, best="top1",
        )  # fmt: skip
        job.check()
        if job.planned({"dataset": "digits"}):
            return None

        def probe(clock: Clock, objective: Objective) -> dict[str, float]:
            return {"top1": 90.0 - clock.epoch}

        with job.open() as folder:
            if not job.resumed:
                start["norm"] = float(net[2].weight.detach().norm())
            result = job.fit(folder, [probe])
            job.write_result(folder, result, {**start, "own": True})
    return result


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def test_files_of_a_run(tmp_path: Path) -> None:
    result = command(tmp_path)
    assert result is not None and result.finished and result.done == 8
    config, written = read(tmp_path / "config.json"), read(tmp_path / "result.json")
    sizes = {"global_batch": 16, "batch_per_process": 16, "accumulate_parts": 1, "classes": 10}
    assert sizes.items() <= config.items() and config["command"] == "train" and config["lr"] == 0.1
    assert sizes.items() <= written.items() and written["own"] is True and written["seed"] == 0
    assert (written["top1"], written["best"]["top1"], written["steps"], written["pictures"]) == (89.0, 90.0, 8, 50)
    assert written["finished"] is True and written["train_loss"] > 0 and written["images_per_second"] > 0
    state = read_checkpoint(tmp_path / "checkpoint.pth.tar")
    assert (state["at_start"], state["width"]) == ({"norm": written["norm"]}, 192)
    assert set(state["state_dict"]) == {"2.weight", "2.bias"}


def test_a_dry_run_says_the_plan_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(tmp_path / "out", dry_run=True, accumulate=2) is None
    plan = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    held = int(plan.pop("bytes of a checkpoint").replace(",", ""))
    assert held == 4 * 1930  # plain SGD holds nothing beside the weights
    assert int(plan.pop("bytes on disk at most").replace(",", "")) == 4 * held
    assert int(plan.pop("bytes in memory").replace(",", "")) > 10**6
    assert float(plan.pop("estimated seconds")) >= 0 and plan == {
        "dataset": "digits", "net": "linear", "parameters": "1,930", "training pictures": "50",
        "batch_per_process": "16", "global_batch": "16", "steps": "8", "steps per epoch": "4",
        "output": str(tmp_path / "out"),
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_facts_of_a_plan_are_not_rounded_away(capsys: pytest.CaptureFixture[str]) -> None:
    with Session("toy", RunOptions(output=None), "digits") as session:
        session.say_facts({"width": 0.75, "one": 1.0, "seconds": 12345.6, "pictures": 1437, "rate": 1.23456})
    said = ["width: 0.75", "one: 1", "seconds: 12,346", "pictures: 1,437", "rate: 1.23", "output: None"]
    assert capsys.readouterr().out.splitlines() == said


def test_resumed_elsewhere(tmp_path: Path) -> None:
    """The best state and the figures of the start come along."""
    command(tmp_path / "whole")
    command(tmp_path / "a", max_steps=5)
    command(tmp_path / "b", resume=str(tmp_path / "a/checkpoint.pth.tar"))
    whole, parts = (read_checkpoint(tmp_path / name / "checkpoint.pth.tar") for name in ("whole", "b"))
    assert all(torch.equal(whole["state_dict"][key], parts["state_dict"][key]) for key in whole["state_dict"])
    assert whole["at_start"] == parts["at_start"] and read_checkpoint(tmp_path / "b/model_best.pth.tar")["epoch"] == 1
    assert read(tmp_path / "b/result.json")["norm"] == read(tmp_path / "whole/result.json")["norm"]


def test_what_cannot_be_resumed_is_named(tmp_path: Path) -> None:
    command(tmp_path, max_steps=5)
    with pytest.raises(InputError, match=r"^--resume auto: .* was made with --lr 0\.1, this run has 0\.2"):
        command(tmp_path, resume="auto", lr=0.2)
    with pytest.raises(InputError, match=r"^--resume auto: .* was made with command train, this run has probe"):
        command(tmp_path, resume="auto", name="probe")
    state = read_checkpoint(tmp_path / "checkpoint.pth.tar")
    torch.save({**state, "at_start": {"norm": "x"}}, tmp_path / "bad.pth.tar")
    with pytest.raises(InputError, match=r"--resume .*bad.pth.tar: the checkpoint's at_start is damaged"):
        command(tmp_path / "new", resume=str(tmp_path / "bad.pth.tar"))
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        ({"norm": True, "batch": 49}, True),  # the last batch is one picture
        ({"norm": True, "batch": 48, "accumulate": 2}, True),
        ({"norm": True, "batch": 48}, False),
        ({"norm": False, "batch": 49}, False),
        ({"norm": True, "frozen": True, "batch": 49}, False),
    ],
)
def test_trained_batch_norm_needs_two_pictures(tmp_path: Path, settings: dict[str, Any], refused: bool) -> None:
    if refused:
        with pytest.raises(InputError, match="batch norm needs two in each: change --train-batch"):
            command(tmp_path / "out", **settings)
        assert not (tmp_path / "out").exists()
    else:
        assert command(None, **settings) is not None


def test_another_batch_than_planned_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = per_process(16, 1, wanted=32)
    with Session("toy", RunOptions(), "digits") as session:
        plan.log_remark(session.accelerator)
        of_job(16, 1).log_remark(session.accelerator)
    assert [line.levelname for line in caplog.records] == ["WARNING"] and "=32" in caplog.text


@pytest.mark.parametrize("kind", ["FIFO", "unreadable"])
def test_a_best_state_that_turns_into_something_else_is_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After it was checked: neither a wait for a writer nor a traceback."""
    command(tmp_path / "a", max_steps=5)
    best, check = tmp_path / "a/model_best.pth.tar", Job._check_best

    def then_spoiled(job: Job) -> None:
        check(job)
        best.unlink()
        os.mkfifo(best) if kind == "FIFO" else best.mkdir()

    monkeypatch.setattr(Job, "_check_best", then_spoiled)
    with pytest.raises(InputError, match=r"^--resume .*checkpoint.pth.tar: cannot read .*model_best.*: it is a F"
                       if kind == "FIFO" else "cannot read .*it is a folder"):  # fmt: skip
        command(tmp_path / "b", resume=str(tmp_path / "a/checkpoint.pth.tar"))


@pytest.mark.parametrize("missing", ["gone", "torn", "a folder"])
@pytest.mark.parametrize("elsewhere", [False, True])
def test_the_best_state_of_a_resumed_run_is_missing(
    tmp_path: Path, missing: str, elsewhere: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Said at the start; then the best of the epochs to come is kept, so that no one finds a name without a file."""
    command(tmp_path / "a", max_steps=5)
    best = tmp_path / "a/model_best.pth.tar"
    best.unlink()
    if missing == "torn":
        best.write_bytes(b"PK torn")
    elif missing == "a folder" and elsewhere:
        best.mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/model_best.pth.tar").write_bytes(b"of something else")
    resume = str(tmp_path / "a/checkpoint.pth.tar") if elsewhere else "auto"
    output = tmp_path / ("b" if elsewhere else "a")
    result = command(output, resume=resume)
    assert result is not None and result.best is not None and result.best["top1"] == 89.0
    assert read_checkpoint(output / "model_best.pth.tar")["epoch"] == 2
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(said) == 1 and "the best state so far is lost" in said[0] and str(tmp_path / "a") in said[0]
    caplog.clear()
    command(output, resume="auto", epochs=3)
    assert "is lost" not in caplog.text and read(output / "result.json")["steps"] == 12


def test_the_best_state_comes_from_beside_the_checkpoint(tmp_path: Path) -> None:
    """Also where the folder has one of something else; resumed once more from there it comes again."""
    command(tmp_path / "a", max_steps=5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b/model_best.pth.tar").write_bytes(b"of something else")
    for _ in range(2):
        command(tmp_path / "b", resume=str(tmp_path / "a/checkpoint.pth.tar"))
        assert read_checkpoint(tmp_path / "b/model_best.pth.tar")["epoch"] == 1


def test_the_release_is_checked_before_more_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    command(tmp_path / "a", max_steps=5)
    state = read_checkpoint(tmp_path / "a/checkpoint.pth.tar")
    torch.save({**state, "release": "9.0.0", "at_start": {"norm": "told otherwise"}}, tmp_path / "later.pth.tar")
    with pytest.raises(InputError, match=r"^--resume .*later.pth.tar: release 9\.0\.0 wrote this checkpoint"):
        command(tmp_path / "b", resume=str(tmp_path / "later.pth.tar"))
    assert not (tmp_path / "b").exists()


def test_a_run_refused_after_its_folder_was_opened_does_not_claim_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The corrected command is not refused; with --overwrite it would be a fresh start, too."""
    fit = Job.fit

    def unreadable(job: Job, *args: Any) -> Result:
        raise InputError("9 of 50 pictures are unreadable")

    monkeypatch.setattr(Job, "fit", unreadable)
    for _ in range(2):
        with pytest.raises(InputError, match="9 of 50"):
            command(tmp_path / "out")
        assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Job, "fit", fit)
    assert command(tmp_path / "out") is not None


@pytest.mark.parametrize(("world", "started"), [(1, 3), (2, 2)])
def test_more_workers_than_cores_are_not_started(
    world: int, started: int, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, and not of pictures in memory, which need none."""
    monkeypatch.setattr("lowbit.train.session.CORES", 3)
    monkeypatch.setattr("lowbit.train.session.local_processes", lambda: world)
    (tmp_path / "train/a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "train/a/0.png")
    caplog.set_level("INFO")
    for dataset, wanted, number, lines in (("digits", 48, started, 0), ("folder", 2, 2, 0), ("folder", 48, started, 1)):
        with Session("toy", RunOptions(data=tmp_path, workers=wanted), dataset) as session:
            session.pictures("train")
            assert [session.loader_options()["workers"] for _ in range(2)] == [number] * 2
        assert len(caplog.records) == lines
    assert f"--workers 48: each loader starts {started}" in caplog.text
