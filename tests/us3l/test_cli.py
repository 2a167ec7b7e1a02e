"""The command line without a run: what is imported, which of a parameter's spellings wins, what is refused."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

Us3l = Callable[..., Result]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom us3l.cli import cli\n"
        "try:\n    cli(['ssl', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'yaml', 'timm') if m in sys.modules]\n"
        "sys.exit(str(heavy)) if heavy else None"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--keep-global-batch" in done.stdout and "KEY.PATH=VALUE" in done.stdout


def test_no_command_shows_what_there_is(us3l: Us3l) -> None:
    said = us3l().stdout
    assert all(
        f"\n  {name} " in said for name in ("ssl", "distill", "slimmable", "linear", "calibrate", "sweep", "export")
    )


def test_flags_win_over_arguments_and_these_over_the_file(us3l: Us3l, small: Path, tmp_path: Path) -> None:
    common = ("ssl", "--config", small, "--limit-train", 8, "--max-steps", 1, "--probe-every", 0)
    flags = ("--output", tmp_path / "a", "--seed", 5, "--num_workers", 1, "-p", 7)
    us3l(*common, *flags, f"OUTPUT={tmp_path / 'b'}", "SEED=4", "TRAIN.NUM_WORKERS=2", "TRAIN.PRINT_FREQ=9")
    found = json.loads((tmp_path / "a/config.json").read_text())
    assert (found["seed"], found["workers"], found["config"]["TRAIN"]["PRINT_FREQ"]) == (5, 1, 7)
    assert found["config"]["SEED"] == 5 and not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "Missing option '--config'"),
        (("--config", "SMALL", "TRAIN.EPOCH=3"), "TRAIN.EPOCHS"),
        (("--config", "SMALL", "TRAIN.EPOCHS=0"), "TRAIN.EPOCHS=0"),
        (("--config", "SMALL", "MODEL.ARCH="), "MODEL.ARCH is empty"),
        (("--config", "SMALL", "MODEL.ARCH=us_resnet81"), "did you mean"),
        (("--config", "SMALL", "MODEL.ARCH=cifar_resnet8_1x1"), "name us_cifar_resnet8_1x1"),
        (("--config", "SMALL", "MODEL.ARCH=s_cifar_resnet8_1x1"), "MODEL.OFA.USE_SLIMMABLE=True"),
        (("--config", "SMALL", "MODEL.ARCH=usprune_cifar_resnet18"), "PRUNE.ENABLE_PRUNE"),
        (("--config", "SMALL", "PRUNE.ENABLE_PRUNE=True"), "PRUNE.ENABLE_PRUNE"),
        (("--config", "SMALL", "TRAIN.DATASET=flowers"), "TRAIN.DATASET=folder"),
        (("--config", "SMALL", "SSL.TYPE=None"), "SSL.TYPE is missing"),
        (("--config", "SMALL", "SSL.TYPE=SEED"), "TRAIN.LOSS.CRITERION.NAME=InfoNCEv2_distill is no loss"),
        (("--config", "SMALL", "SSL.TYPE=SEED_MSE"), "us3l distill"),
        (("--config", "SMALL", "TRAIN.LR_SCHEDULER.WARMUP_EPOCHS=4"), "WARMUP_EPOCHS=4 of TRAIN.EPOCHS=4: give fewer"),
        (("--config", "SMALL", "TRAIN.BATCH_SIZE=4"), "batch norm needs two"),  # 33 pictures leave one
        (("--config", "SMALL", "SSL.TYPE=MoCo", "TRAIN.LOSS.CRITERION.NAME=", "SSL.SETTING.MOCO_K=7"), "MOCO_K=7"),
        (("--config", "SMALL", "TRAIN.GLOBAL_BATCH=12", "--keep-global-batch"), "no multiple"),
        (("--config", "SMALL", "--pretrained"), "--pretrained"),
        (("--config", "SMALL", "MODEL.PRETRAINED=a.pth.tar"), "MODEL.PRETRAINED"),
        (("--config", "SMALL", "--val-split", "0.1"), "--val-split"),
        (("--config", "SMALL", "MODEL.CHECKPOINT=nowhere.pth.tar"), "nowhere.pth.tar"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    us3l: Us3l, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], said: str
) -> None:
    refused(us3l, tmp_path, monkeypatch, "ssl", *(str(small) if arg == "SMALL" else arg for arg in args), said=said)


@pytest.mark.parametrize(
    ("command", "args", "said"),
    [
        ("distill", ("SSL.TYPE=BYOL",), "run `us3l ssl`"),
        ("distill", ("SSL.TYPE=SEED",), "DISTILL.TEACHER_ARCH and DISTILL.TEACHER_PRETRAINED are needed"),
        (
            "distill",
            ("SSL.TYPE=SEED", "DISTILL.TEACHER_ARCH=cifar_resnet8_1x1", "DISTILL.TEACHER_PRETRAINED=nowhere.pth"),
            "DISTILL.TEACHER_PRETRAINED",
        ),
        ("slimmable", (), "trains switchable nets"),
        ("linear", ("PRUNE.ENABLE_PRUNE=True",), "PRUNE.ENABLE_PRUNE"),
        ("linear", ("TRAIN.DATASET=pets",), "TRAIN.DATASET=folder"),
        ("slimmable", ("MODEL.ARCH=s_cifar_resnet8_1x1", "TRAIN.LR_SCHEDULER.BASE_LR=0"), "BASE_LR=0"),
        ("slimmable", ("MODEL.ARCH=s_cifar_resnet8_1x1", "--val-split", "0.1"), "--val-split"),
    ],
)
def test_bad_input_of_the_other_commands(
    us3l: Us3l, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, args: Any, said: str
) -> None:
    refused(us3l, tmp_path, monkeypatch, command, "--config", str(small), *args, said=said)


def refused(us3l: Us3l, folder: Path, monkeypatch: pytest.MonkeyPatch, *args: str, said: str) -> None:
    monkeypatch.chdir(folder)
    limits = ("--limit-train", 33, "--limit-eval", 20)
    result = us3l(*args, "--output", folder / "out", *limits, code=2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert not list(folder.iterdir())
