"""Gate 5: bad input is one line on stderr and exit code 2; nothing is written, and no code of a file is run."""

import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.checkpoint.read import read_checkpoint
from lowbit.train.folder import RunFolder

Bsq = Callable[..., Result]
NET = ("-d", "digits", "-a", "cifar_resnet8_1x1")
CONVERT = ("convert", *NET, "--Nbits", "8", "-c", "out", "--model", "bad.tar")
EVALUATE = ("cifar_finetune", *NET, "--evaluate", "--bin", "-c", "out", "--model", "bad.tar")
READERS = {
    "train": ("train", *NET, "-c", "out", "--model", "bad.tar"),
    "train -e": ("train", *NET, "-e", "-c", "out", "--model", "bad.tar"),
    "convert": CONVERT,
    "convert --dict": ("convert", *NET, "-c", "out", "--dict", "bad.tar"),
    "cifar_finetune": EVALUATE,
    "report": ("report", "--output", "out", "--model", "bad.tar"),
    "export": ("export", "--output", "out", "--model", "bad.tar"),
    "resume": ("train", *NET, "-c", "out", "--resume", "bad.tar"),
}


class Payload:
    """Pickled code that would leave a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("code-was-run"),)


def damage(kind: str, runs: Path) -> None:
    """Write bad.tar into the working folder."""
    good = runs / "bits8/checkpoint.pth.tar"
    state = read_checkpoint(good)
    bad = Path("bad.tar")
    if kind == "truncated":
        bad.write_bytes(good.read_bytes()[:-1000])
    elif kind == "empty":
        bad.touch()
    elif kind == "text":
        bad.write_text("{}")
    elif kind == "tensor":
        torch.save(torch.zeros(3), bad)
    elif kind == "foreign":
        torch.save({"model": {"weight": torch.zeros(3)}, "args": {}}, bad)
    elif kind == "other package":
        torch.save({**state, "package": "ssql"}, bad)
    elif kind == "code":
        torch.save({"state_dict": {}, "x": Payload()}, bad)
    elif kind == "bare pickle":
        bad.write_bytes(pickle.dumps(Payload()))
    elif kind == "NaN":
        state["state_dict"]["module.conv1.scale"].fill_(float("nan"))
        torch.save(state, bad)
    elif kind == "another net":
        tensors = {key: value for key, value in state["state_dict"].items() if "layer2" not in key}
        torch.save({"state_dict": tensors}, bad)
    elif kind == "other shapes":
        tensors = {**state["state_dict"], "module.bn1.weight": torch.ones(7)}
        torch.save({**state, "state_dict": tensors}, bad)
    elif kind == "integers":
        tensors = {**state["state_dict"], "module.bn1.weight": torch.ones(16, dtype=torch.int64)}
        torch.save({**state, "state_dict": tensors}, bad)
    else:
        raise ValueError(kind)


def refused(result: Result, folder: Path, kept: set[str]) -> str:
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr
    assert {path.name for path in folder.iterdir()} == kept
    return result.stderr


KINDS = ("truncated", "empty", "text", "tensor", "foreign", "other package", "code", "bare pickle", "NaN")
NETS = ("another net", "other shapes", "integers")  # of --dict only the widths are read


@pytest.mark.parametrize(
    ("kind", "command"), [(k, c) for c in READERS for k in (*KINDS, *(NETS if c != "convert --dict" else ()))]
)
def test_damaged_checkpoints(
    kind: str, command: str, digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damage(kind, digits_run)
    assert "bad.tar" in refused(bsq(*READERS[command], code=2), tmp_path, {"bad.tar"}) or command == "resume"


@pytest.mark.parametrize(
    ("args", "names"),
    [
        (("convert", "--Nbits", "0"), "--Nbits"),
        (("convert", "--Nbits", "17"), "--Nbits"),
        (("convert", "--Nbits", "8.5"), "8.5"),
        (("convert", "--act", "-1"), "--act"),
        (("convert", "--act-range", "ema"), "ema"),
        (("convert", "--dataset", "mnist"), "mnist"),
        (("convert", "--model", "nowhere.tar"), "nowhere.tar"),
        (("convert", "-a", "resnet", "--depth", "29"), "29"),
        (("convert", "-a", "resnet21"), "resnet21"),
        (("convert", *NET, "--test-batch", "0"), "--test-batch"),
        (("convert", *NET, "--exclude", "layer9.*"), "layer9"),
        (("convert", *NET, "--include", "nothing"), "nothing"),
        (("convert", *NET, "--act-include", "nothing"), "nothing"),
        (("convert", *NET, "--preset", "hawq"), "hawq"),
        (("convert", *NET, "--limit-eval", "361"), "361"),
        (("convert", *NET, "--mixed-precision", "fp16"), "fp16"),
        (("convert", *NET, "--unknown", "1"), "--unknown"),
        (("convert", *NET, "--download"), "digits"),
        (("train", *NET, "--epochs", "0"), "--epochs"),
        (("train", *NET, "--lr", "-1"), "--lr"),
        (("train", *NET, "--lr", "inf"), "--lr"),
        (("train", *NET, "--momentum", "1"), "--momentum"),
        (("train", *NET, "--schedule", "a"), "--schedule"),
        (("train", *NET, "--act", "4"), "--act"),
        (("train", *NET, "--accumulate", "100"), "--accumulate"),
        (("train", *NET, "--tracker", "nobody"), "nobody"),
        (("train", "-a", "resnet18", "-d", "digits", "--epochs", "1", "--train-batch", "359"), "--train-batch"),
        (("cifar_prune_STE", *NET, "--train-batch", "359"), "batch norm needs two"),  # 1,437 pictures leave one
        (("train", *NET, "--opt", "adagrad"), "--opt"),
        (("train", *NET, "--evaluate"), "--model"),
        (("train", *NET, "--resume", "nowhere.tar"), "nowhere.tar"),
        (("cifar_finetune", *NET), "--model"),
        (("cifar_prune_STE", *NET, "--max-bits", "layer9*=4"), "layer9"),
        (("cifar_prune_STE", *NET, "--max-bits", "17"), "17"),
        (("cifar_prune_STE", *NET, "--min-bits", "x"), "x"),
        (("cifar_prune_STE", *NET, "--min-bits", "fc=5", "--max-bits", "4"), "layer fc"),
        (("cifar_prune_STE", *NET, "--thre", "nan"), "nan"),
        (("cifar_prune_STE", *NET, "--decay", "-1"), "--decay"),
        (("cifar_prune_STE", *NET, "--evaluate"), "--model"),
        (("train", *NET, "--evaluate", "--resume", "auto"), "--resume"),
        (("cifar_finetune", *NET, "--evaluate"), "--model"),
        (("report",), "--model"),
        (("export", "--format", "zip"), "zip"),
        (("nothing",), "nothing"),
    ],
)
def test_values_and_flags(
    args: tuple[str, ...], names: str, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names in refused(bsq(*args, code=2), tmp_path, set())


def test_weights_of_the_wrong_kind(digits_run: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    floats, bits = (digits_run / name / "checkpoint.pth.tar" for name in ("float", "bits8"))
    common = ("-d", "digits", "--evaluate", "--model")
    wrong: list[tuple[str, tuple[object, ...]]] = [
        ("run convert", ("cifar_finetune", *NET, "--evaluate", "--model", floats)),
        ("run convert", ("report", "--model", floats)),
        ("run convert", ("export", "--model", floats, "-c", "out")),
        ("cifar_finetune", ("convert", *NET, "--model", bits)),
        ("bit form", ("train", *NET, "--evaluate", "--model", bits)),
        ("-a cifar_resnet8_1x1", ("cifar_finetune", *common, bits, "-a", "resnet", "--depth", 14)),
        ("cifar_resnet8_1x1", ("train", *common, floats, "-a", "resnet50")),
        ("Nbit_dict", ("convert", *NET, "--dict", floats)),
        ("--output", ("export", "--model", bits)),
    ]
    for names, args in wrong:
        assert names in refused(bsq(*args, code=2), tmp_path, set())


def test_data_that_is_not_there(bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/val/a").mkdir(parents=True)
    assert "train" in refused(bsq("convert", "-d", "folder", code=2), tmp_path, {"data"})
    assert "cifar-10" in refused(bsq("convert", code=2), tmp_path, {"data"})
    assert "wnids" in refused(bsq("convert", "-d", "tiny-imagenet", code=2), tmp_path, {"data"})


@pytest.mark.data
@pytest.mark.parametrize("command", ["convert", "train"])
def test_a_truncated_data_file(
    command: str, cifar10_root: Path, bsq: Bsq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data/cifar-10-batches-py"
    folder.mkdir(parents=True)
    for file in (cifar10_root / "cifar-10-batches-py").iterdir():
        if file.name != "test_batch":
            (folder / file.name).symlink_to(file)
    (folder / "test_batch").write_bytes((cifar10_root / "cifar-10-batches-py/test_batch").read_bytes()[:-9999])
    assert "test_batch" in refused(bsq(command, code=2), tmp_path, {"data"})


def test_a_folder_that_holds_a_run(digits_run: Path, bsq: Bsq, tmp_path: Path) -> None:
    out = tmp_path / "out"
    bsq("convert", *NET, "-c", out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for args in (("convert", *NET), ("train", *NET), ("report", "--model", out / "checkpoint.pth.tar")):
        assert "--overwrite" in refused(bsq(*args, "-c", out, code=2), tmp_path, {"out"})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    bsq("convert", *NET, "--Nbits", 3, "-c", out, "--overwrite")
    assert (out / "checkpoint.pth.tar").read_bytes() != before["checkpoint.pth.tar"]


def test_a_folder_that_another_run_holds(bsq: Bsq, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "out"):
        for command in ("convert", "train"):
            result = bsq(command, *NET, "-c", tmp_path / "out", "--overwrite", code=2)
            assert "another run" in result.stderr and result.stderr.count("\n") == 1
        assert {path.name for path in (tmp_path / "out").iterdir()} == {".lock"}


def test_as_a_process(digits_run: Path, processes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m bsq`, with what is wrong before torch is imported; then all of it (a console script is `main`)."""
    monkeypatch.chdir(tmp_path)
    damage("code", digits_run)
    line = ("convert", *NET, "-c", tmp_path / "out", "--model", tmp_path / "bad.tar")
    program = [sys.executable, "-m", "bsq", *map(str, line), "--Nbits", "0"]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
    started = processes.start((*line, "--Nbits", 8)).wait(2)
    assert started.said() == "" and "bad.tar" in started.said(stream="err")
    assert started.said(stream="err").count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"bad.tar"}
