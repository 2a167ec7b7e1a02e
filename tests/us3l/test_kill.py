"""US3L's trainings as processes: killed between the widths of a step and resumed they are the unbroken run."""

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

Us3l = Callable[..., Result]
Line = tuple[object, ...]
Same = Callable[[Path, Path], None]

RECIPES = {  # of the authors' README, on small pictures
    "cifar/us_resnet18_simclr_featdistill_cifar.yaml": (),
    "imagenet/us_resnet50_byol_featdistill_imagenet.yaml": ("TRAIN.SYNC_BN=True",),
}
TINY = (
    "MODEL.ARCH=us_cifar_resnet8_1x1", "MODEL.INPUTSHAPE=[8, 8]", "MODEL.OFA.REGULARIZER_WARMUP_EPOCHS=0",
    "MODEL.OFA.CALIBRATION_PICTURES=16", "TRAIN.DATASET=digits", "TRAIN.EPOCHS=4", "TRAIN.BATCH_SIZE=4",
    "TRAIN.GLOBAL_BATCH=8", "SSL.SETTING.DIM=16", "SSL.SETTING.HIDDEN_DIM=16", "TRAIN.PRINT_FREQ=1",
)  # fmt: skip


@pytest.mark.heavy
@pytest.mark.parametrize("name", RECIPES)
def test_the_readmes_recipes_in_four_stages_on_two_processes(
    name: str, processes: Any, same_run: Same, tmp_path: Path
) -> None:
    """Killed inside a batch of the third stage and stopped between the third and the fourth, resumed each time."""
    limits = ("--limit-train", 16, "--limit-eval", 12, "--probe-every", 4)
    line = ("ssl", "--config", f"configs/{name}", *TINY, *RECIPES[name], *limits, "--output")
    kept, broken = tmp_path / "kept", (*line, tmp_path / "broken", "--save-every", 1, "--resume", "auto")
    done = processes.start((*line, tmp_path / "whole"), world=2, weights=str(kept))
    processes.start(broken, world=2, kill=(1, 5)).wait(-signal.SIGKILL, -signal.SIGKILL)
    assert torch.load(tmp_path / "broken/checkpoint.pth.tar", weights_only=True)["step"] == 5
    processes.start((*broken, "--max-steps", 6), world=2).wait(0, 0)
    processes.start(broken, world=2).wait(0, 0)
    said = done.wait(0, 0).said(stream="err")
    assert said.count("TRAIN.USE_AMP: the CPU computes in float32") == (1 if "imagenet" in name else 0)
    same_run(tmp_path / "whole", tmp_path / "broken")
    (first, widths), (second, others) = (torch.load(f"{kept}.{rank}") for rank in range(2))
    assert widths == others and [len(step) for step in widths] == [1] * 2 + [3] * 6
    assert [step[-1] for step in widths] == pytest.approx([1, 1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25])
    assert len({step[1] for step in widths[2:]}) == 6
    differing = {key.rpartition(".")[2] for key in first if not torch.equal(first[key], second[key])}
    assert differing == (set() if RECIPES[name] else {"running_mean", "running_var"})


@pytest.mark.parametrize(
    "place", [pytest.param(0, marks=pytest.mark.heavy), 1, pytest.param(2, marks=pytest.mark.heavy)]
)
def test_kill_9_between_the_widths_of_a_step(
    place: int, processes: Any, digits_line: Line, digits_run: tuple[Path, Result], same_run: Same, tmp_path: Path,
    us3l: Us3l,
) -> None:  # fmt: skip
    line = (*digits_line, "--output", tmp_path, "--save-every", 5)
    processes.start(line, kill=(place, 9)).wait(-signal.SIGKILL)
    assert torch.load(tmp_path / "checkpoint.pth.tar", weights_only=True)["step"] == 5
    said = us3l(*line, "--resume", "auto").stdout
    same_run(tmp_path, digits_run[0])
    assert digits_run[1].stdout.endswith(said)


LOSSES = {"MoCo": "CrossEntropy", "MoCo_v3": "InfoNCE", "ViT": "InfoNCE", "SEED": "soft_distill"}
METHODS = {"ViT": "MoCo_v3"}
TRAININGS = {
    "SimCLR": ("ssl",),
    "SimCLR_Momentum": ("ssl", "MODEL.OFA.STEP_PER=batch"),
    "BYOL": ("ssl", "MODEL.OFA.MOMENTUM_UPDATE=True", "MODEL.OFA.REGULARIZER=True"),
    "SimSiam": ("ssl",),
    "SimSiam_Momentum": ("ssl", "MODEL.OFA.DISTILL=False"),
    "MoCo": ("ssl",),
    "MoCo_v3": ("ssl",),
    "ViT": ("ssl", "MODEL.ARCH=us_test_vit", "MODEL.INPUTSHAPE=[160, 160]"),
    "SEED": ("distill",),
    "SEED_MSE": ("distill",),
    "SEED_SimCLR": ("distill",),
    "slimmable": ("slimmable", "MODEL.ARCH=s_cifar_resnet8_1x1", "MODEL.OFA.WIDTH_MULT_LIST=[1.0, 0.75, 0.5, 0.25]"),
}


@pytest.fixture(scope="module")
def teacher(us3l: Us3l, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a plain net."""
    folder = tmp_path_factory.mktemp("teacher")
    keys = ("MODEL.ARCH=cifar_resnet8_1x1", "MODEL.OFA.NUM_SAMPLE_TRAINING=1", "SSL.TYPE=BYOL", "TRAIN.EPOCHS=1")
    us3l("ssl", "--config", small, "--limit-train", 8, "--probe-every", 0, "--output", folder, *keys)
    return folder / "checkpoint.pth.tar"


@pytest.mark.parametrize("kind", [pytest.param(x, marks=pytest.mark.heavy if x == "ViT" else ()) for x in TRAININGS])
def test_each_training_is_killed_and_resumed(
    kind: str, processes: Any, us3l: Us3l, small: Path, teacher: Path, same_run: Same, tmp_path: Path
) -> None:
    """Three steps of its own config; the kill falls inside the second, before an optimizer steps."""
    command, *keys = TRAININGS[kind]
    config = tmp_path / "own.yaml"
    name = LOSSES.get(kind, "CosineSimilarity" if command == "distill" else "")
    config.write_text(f"BASE_CONFIG: {small}\nTRAIN: {{LOSS: {{CRITERION: {{NAME: '{name}'}}}}}}\n")
    line = [command, "--config", config, *keys, "TRAIN.EPOCHS=1", "MODEL.OFA.SAMPLE_SCHEDULER=", "--limit-eval", 12]
    line += [
        "--limit-train",
        24,
        *(() if command == "slimmable" else ("--probe-every", 0, f"SSL.TYPE={METHODS.get(kind, kind)}")),
    ]
    if command == "distill":
        line += [
            "MODEL.OFA.NUM_SAMPLE_TRAINING=1",
            "MODEL.OFA.WIDTH_MULT=0.5",
            "DISTILL.TEACHER_ARCH=cifar_resnet8_1x1",
        ]
        line += [f"DISTILL.TEACHER_PRETRAINED={teacher}", "DISTILL.TEACHER_DIM=16", "DISTILL.TEACHER_HIDDEN_DIM=16"]
    last = 0 if command == "distill" or "MODEL.OFA.STEP_PER=batch" in keys else 1
    broken = (*line, "--output", tmp_path / "broken", "--save-every", 1)
    killed = processes.start(broken, kill=(last, 1))
    us3l(*line, "--output", tmp_path / "whole")
    killed.wait(-signal.SIGKILL)
    assert torch.load(tmp_path / "broken/checkpoint.pth.tar", weights_only=True)["step"] == 1
    us3l(*broken, "--resume", "auto")
    same_run(tmp_path / "whole", tmp_path / "broken")
    result = json.loads((tmp_path / "whole/result.json").read_text())
    assert result["steps"] == 3 and result["finished"]


@pytest.fixture(scope="module")
def of_nothing_trained(digits_run: tuple[Path, Result], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Line]:
    """Command lines of the commands that cannot go on, of a checkpoint of three widths."""
    checkpoint, config = digits_run[0] / "checkpoint.pth.tar", tmp_path_factory.mktemp("config") / "own.yaml"
    config.write_text("MODEL: {INPUTSHAPE: [8, 8]}\nTRAIN: {DATASET: digits}\n")
    return {
        "calibrate": ("--config", config, f"MODEL.PRETRAINED={checkpoint}", "--widths", "0.25,1"),
        "sweep": (checkpoint, "--widths", "0.25,1", "--probe-epochs", 2, "--limit-eval", 20),
        "export": (checkpoint, "--width", 0.5),
    }


@pytest.mark.parametrize("command", ["calibrate", "sweep", "export"])
def test_what_cannot_be_resumed_is_killed_and_run_again(
    command: str, of_nothing_trained: dict[str, Line], processes: Any, us3l: Us3l, tmp_path: Path
) -> None:
    """Killed where its files are written and its result is due; the files are those of an undisturbed run."""
    line = (command, *of_nothing_trained[command], "--limit-train", 40, "--output")
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    killed = processes.start((*line, broken), kill=("end", 0))
    us3l(*line, whole)
    killed.wait(-signal.SIGKILL)
    assert not (broken / "result.json").exists()
    assert "--overwrite" in us3l(*line, broken, code=2).stderr
    us3l(*line, broken, "--overwrite")
    told = {"config.json", "result.json", "train.log"}
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.name not in told}
    assert files == {path.name: path.read_bytes() for path in broken.iterdir() if path.name not in told}
    first, second = (json.loads((folder / "result.json").read_text()) for folder in (whole, broken))
    assert {**first, "seconds": 0} == {**second, "seconds": 0} and len(files) > 1
