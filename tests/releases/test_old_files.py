"""Files of older releases are read: what they hold, what commands find in them, what starts from them, what does not.

The numbers are what the release itself computed (`expected.json`); each folder's README says how it was made.
"""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from release_files import EVALUATIONS, HERE, PROBES, RESNET, TINY, TRAINING, evaluation, outputs, probe, run, unpack

import lowbit

EXPECTED = {path.parent.name[1:]: json.loads(path.read_text()) for path in sorted(HERE.glob("v*/expected.json"))}
ONE_PICTURE = 100 / 360 + 1e-9  # of the test set: what single precision on another processor may move
SHORT = ("--limit-train", 100, "--max-steps", 2)
BITS = (*TINY, "--train-batch", 64, "--Nbits", 3, "--min-bits", 2, "--epochs", 2, "--lr", 0.05)
DIGITS = ("--config", "configs/base/digits.yaml", "SSL.SETTING.DIM=16", "SSL.SETTING.HIDDEN_DIM=16", "TRAIN.EPOCHS=4")
MOCO = ("SSL.TYPE=SSQL_MoCo", "TRAIN.LOSS.CRITERION.NAME=CrossEntropy", "SSL.SETTING.MOCO_K=128")
ARCH = "MODEL.ARCH={}".format


def asked(section: str) -> list[tuple[str, str]]:
    """(release, file) of every number that a release recorded."""
    return [(release, name) for release, expected in EXPECTED.items() for name in expected[section]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of every release, by release."""
    return {release: unpack(release, tmp_path_factory.mktemp(release)) for release in EXPECTED}


def test_every_release_before_this_one_left_files() -> None:
    headings = re.findall(r"^## (\d+\.\d+\.\d+)", (HERE.parents[1] / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert lowbit.__version__ in headings
    assert set(headings) - {lowbit.__version__} == set(EXPECTED)  # `make.py` makes those of a release, at its end


@pytest.mark.parametrize(("release", "name"), asked("sha256"))
def test_the_files_are_those_that_were_made(files: dict[str, Path], release: str, name: str) -> None:
    assert hashlib.sha256((files[release] / name).read_bytes()).hexdigest() == EXPECTED[release]["sha256"][name]


@pytest.mark.parametrize(("release", "name"), asked("outputs"))
def test_load_gives_the_same_net(files: dict[str, Path], release: str, name: str) -> None:
    found, expected = outputs(files[release] / name), EXPECTED[release]["outputs"][name]
    assert found["shape"] == expected["shape"]
    assert found["first"] == pytest.approx(expected["first"], rel=1e-10, abs=1e-10)
    assert found["sum"] == pytest.approx(expected["sum"], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("release", "name"), asked("evaluation"))
def test_evaluation_finds_the_same(files: dict[str, Path], tmp_path: Path, release: str, name: str) -> None:
    found, expected = evaluation(files[release] / name, tmp_path / "out"), EXPECTED[release]["evaluation"][name]
    if EVALUATIONS[name][0] == "bsq":  # in double precision
        assert found == pytest.approx(expected, rel=1e-9)
    else:
        assert found == pytest.approx(expected, abs=ONE_PICTURE)


@pytest.mark.parametrize(("release", "name"), asked("probe"))
def test_a_linear_evaluation_finds_the_same(files: dict[str, Path], tmp_path: Path, release: str, name: str) -> None:
    found, expected = probe(files[release] / name, tmp_path / "out"), EXPECTED[release]["probe"][name]
    assert list(found) == list(expected)
    for figure, value in expected.items():
        if figure == "train_loss":  # since 0.2.0 a short last batch weighs as many pictures as it has
            assert found[figure] == pytest.approx(value, rel=0.02)
            continue
        loss = "loss" in figure
        assert found[figure] == pytest.approx(value, rel=1e-4 if loss else 0, abs=0 if loss else ONE_PICTURE), figure


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("bsq-float.pth.tar", ("train", *RESNET, *SHORT)),
        ("bsq-float.pth.tar", ("convert", *RESNET, "--limit-eval", 100)),
        ("bsq-float.pth.tar", ("cifar_prune_STE", *RESNET, *SHORT)),
        ("bsq-bits.pth.tar", ("cifar_prune_STE", *RESNET, *SHORT)),
        ("bsq-requantized.pth.tar", ("cifar_finetune", *RESNET, *SHORT)),
        ("bsq-finetuned.pth.tar", ("cifar_finetune", *RESNET, *SHORT)),
        ("bsq-finetuned.pth.tar", ("report",)),
        ("bsq-finished.pth.tar", ("cifar_prune_STE", *BITS, *SHORT)),
        ("bsq-finished.pth.tar", ("cifar_finetune", *TINY, *SHORT)),
        ("bsq-interrupted.pth.tar", ("cifar_finetune", *TINY, *SHORT)),
        ("bsq-interrupted.pth.tar", ("report",)),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0],
)
def test_the_next_command_of_bsq_starts(
    files: dict[str, Path], tmp_path: Path, name: str, line: tuple[object, ...]
) -> None:
    run("bsq", *line, "--model", files["0.1.0"] / name, "--output", tmp_path / "out")
    assert (tmp_path / "out/config.json").exists()


def test_export_gives_the_same_packed_file(files: dict[str, Path], tmp_path: Path) -> None:
    line = ("export", "--model", files["0.1.0"] / "bsq-finetuned.pth.tar", "--output", tmp_path / "out")
    run("bsq", *line, "--keep-batch-ranges")
    packed = tmp_path / "out/packed.safetensors"
    assert outputs(packed) == outputs(files["0.1.0"] / "bsq-packed.safetensors")
    assert packed.stat().st_size <= (files["0.1.0"] / "bsq-packed.safetensors").stat().st_size * 1.01


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("ssql-simsiam.pth.tar", ("default", "TRAIN.LINEAR_EVAL=True")),
        ("ssql-simsiam.pth.tar", ("linear", "TRAIN.LINEAR_EVAL=False")),
        ("ssql-backbone.safetensors", ("linear", "TRAIN.LINEAR_EVAL=True")),
        ("ssql-linear.pth.tar", ("linear", "TRAIN.LINEAR_EVAL=False", "TRAIN.WARMUP_FC=True")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_the_next_command_of_ssql_starts(
    files: dict[str, Path], tmp_path: Path, name: str, line: tuple[str, ...]
) -> None:
    start = (ARCH("cifar_resnet8_1x1"), "TRAIN.LR_SCHEDULER.BASE_LR=0.1", f"MODEL.PRETRAINED={files['0.1.0'] / name}")
    run("ssql", *line, *TRAINING, *start, *SHORT, "--output", tmp_path / "out")
    assert (tmp_path / "out/config.json").exists()


RESUMED = [  # the line that began the run, whose checkpoint it is
    ("bsq-float.pth.tar", "bsq", ("train", *RESNET, "--train-batch", 64, "--momentum", 0, "--epochs", 8)),
    ("bsq-interrupted.pth.tar", "bsq", ("cifar_prune_STE", *BITS)),
    ("bsq-finetuned.pth.tar", "bsq", ("cifar_finetune", *RESNET, "--train-batch", 64, "--epochs", 1)),
    ("ssql-simsiam.pth.tar", "ssql", ("ssl", *DIGITS, "SSL.TYPE=SSQL_SimSiam")),
    ("ssql-moco.pth.tar", "ssql", ("ssl", *DIGITS, *MOCO, ARCH("tiny_of_releases"))),
    ("ssql-linear.pth.tar", "ssql", (*PROBES["ssql-simsiam.pth.tar"], "MODEL.PRETRAINED=")),
]


@pytest.mark.parametrize(("name", "program", "line"), RESUMED, ids=[name for name, _, _ in RESUMED])
def test_a_run_of_an_older_release_is_not_resumed(
    files: dict[str, Path], tmp_path: Path, name: str, program: str, line: tuple[Any, ...]
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(files["0.1.0"] / name, folder / "checkpoint.pth.tar")
    model = ("--model", files["0.1.0"] / "bsq-requantized.pth.tar") if line[0] == "cifar_finetune" else ()
    for resume in ("auto", files["0.1.0"] / name):
        said = run(program, *line, *model, "--output", folder, "--resume", resume, code=2)
        (error,) = said.stderr.splitlines()
        assert "release 0.1.0 wrote this checkpoint" in error and f"release {lowbit.__version__} " in error
        assert f"pip install lowbit-{program}==0.1.0" in error and "from its weights" in error
        assert [path.name for path in folder.iterdir()] == ["checkpoint.pth.tar"]  # nothing was written
