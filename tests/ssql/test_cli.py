"""The command line without a run: what is imported, which of a parameter's spellings wins, what is refused."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Ssql = Callable[..., Result]


def cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys, ssql.cli\n"
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'timm') if m in sys.modules]\n"
        "sys.exit(str(heavy)) if heavy else None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    times = []
    for _ in range(3):
        before = cpu_of_children()
        done = subprocess.run(
            [sys.executable, "-m", "ssql", "ssl", "--help"], capture_output=True, text=True, check=True
        )
        times.append(cpu_of_children() - before)
    assert min(times) < 0.5
    assert "--keep-global-batch" in done.stdout and "KEY.PATH=VALUE" in done.stdout


def test_no_command_shows_what_there_is(ssql: Ssql) -> None:
    said = ssql().stdout
    assert all(f"\n  {name} " in said for name in ("ssl", "linear", "default", "sweep", "draw", "demo"))


def resolved(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_flags_win_over_arguments_and_these_over_the_file(ssql: Ssql, small: Path, tmp_path: Path) -> None:
    common = ("ssl", "--config", small, "--limit-train", 32, "--max-steps", 1, "--probe-every", 0)
    ssql(*common, f"OUTPUT={tmp_path / 'a'}", "TRAIN.NUM_WORKERS=2")
    found = resolved(tmp_path / "a")
    assert (found["seed"], found["workers"], found["config"]["TRAIN"]["PRINT_FREQ"]) == (3, 2, 2)
    flags = ("--output", tmp_path / "b", "--seed", 5, "--num_workers", 1, "-p", 7)
    ssql(*common, *flags, f"OUTPUT={tmp_path / 'c'}", "SEED=4", "TRAIN.NUM_WORKERS=2", "TRAIN.PRINT_FREQ=9")
    found = resolved(tmp_path / "b")
    assert (found["seed"], found["workers"], found["config"]["TRAIN"]["PRINT_FREQ"]) == (5, 1, 7)
    assert found["config"]["SEED"] == 5
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "Missing option '--config'"),
        (("--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--config", "SMALL", "-j", "2", "--num_workers", "3"), "disagree"),
        (("--config", "SMALL", "TRAIN.EPOCH=3"), "TRAIN.EPOCHS"),
        (("--config", "SMALL", "TRAIN.EPOCHS=0"), "TRAIN.EPOCHS=0"),
        (("--config", "SMALL", "MODEL.ARCH="), "MODEL.ARCH is empty"),
        (("--config", "SMALL", "MODEL.ARCH=resnet81"), "did you mean"),
        (("--config", "SMALL", "TRAIN.DATASET=''"), "TRAIN.DATASET is empty"),
        (("--config", "SMALL", "TRAIN.DATASET=cifar10", "--data", "nowhere"), "there is no"),
        (("--config", "SMALL", "SSL.TYPE=None"), "SSL.TYPE is missing"),
        (("--config", "SMALL", "MODEL.INPUTSHAPE=(8, 16)"), "square"),
        (("--config", "SMALL", "TRAIN.BATCH_SIZE=4"), "batch norm needs two"),  # 33 pictures leave one
        (("--config", "SMALL", "SSL.TYPE=MoCo", "SSL.SETTING.MOCO_K=31"), "MOCO_K=31"),
        (("--config", "SMALL", "SSL.TYPE=SimCLR", "SSL.SETTING.NEGATIVES=gathered", "--accumulate", "2"), "gathered"),
        (("--config", "SMALL", "TRAIN.GLOBAL_BATCH=48", "--keep-global-batch"), "no multiple"),
        (("--config", "SMALL", "--pretrained"), "--pretrained"),
        (("--config", "SMALL", "MODEL.PRETRAINED=a.pth.tar"), "MODEL.PRETRAINED"),
        (("--config", "SMALL", "--val-split", "0.1"), "--val-split"),
        (("--config", "SMALL", "MODEL.CHECKPOINT=nowhere.pth.tar"), "nowhere.pth.tar"),
        (("--config", "SMALL", "MODEL.ARCH=test_vit", "MODEL.INPUTSHAPE=(160, 160)", "--authors-layout"), "ResNets"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    ssql: Ssql, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    args = tuple(str(small) if arg == "SMALL" else arg for arg in args)
    limits = ("--limit-train", 33, "--limit-eval", 20)
    result = ssql("ssl", *args, "--output", tmp_path / "out", *limits, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(tmp_path.iterdir())
