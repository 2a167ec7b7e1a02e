"""Every command line that a README shows runs, after those above it: with few pictures, for an epoch, of a small net.

What a line names, such as FOLDER or CHECKPOINT, is a file or a folder of this name here. What is behind
`accelerate launch` runs in one process, and `--timm-teacher` takes a net of random weights. `NOT_RUN` has the others.
"""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.core import ParameterSource
from PIL import Image
from readmes import README, ROOT, command_of, programs, shell_lines
from sklearn.datasets import load_digits

from lowbit.models.create import create_model

pytestmark = [pytest.mark.heavy, pytest.mark.data]
NOT_RUN = {  # the start of a line, and why
    "pip install": "it installs (test_wheels.py and tools/fresh_clone.py do)",
    "uv run pytest": "the tests",
    "bsq demo": "of minutes (tools/fresh_clone.py runs it)",
}
NET, LAST = "cifar_resnet8_1x1", "checkpoint.pth.tar"
FEW: dict[str, Any] = {  # in place of what a line says, where its command has the option
    "limit_train": 16, "limit_eval": 10, "workers": 0, "overwrite": True, "epochs": 1, "schedule": (1,), "prun_int": 1,
    "train_batch": 8, "batch_size": 8, "probe_epochs": 1, "probe_every": 0, "calibration": 8, "warmup_steps": 1,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {  # likewise, of one program
    "bsq": {"arch": NET, "depth": None},
    "s2bnn": {"student": NET, "arch": NET, "image_size": 32, "moco_k": 8},
    "sqakd main": {"image_size": 32},
    "sqakd recipe": {"more": ("--data=DATA", "--limit-train=16", "--limit-eval=10", "--epochs=1", "--batch_size=8",
                              "--calibration=8", "--workers=0", "--overwrite")},
    "ssql sweep": {"arch": NET},
    "us3l sweep": {"arch": f"us_{NET}"},
}  # fmt: skip
KEYS = {  # likewise, of a config
    "": ("MODEL.INPUTSHAPE=[32, 32]", "MODEL.NUM_CLASSES=0", "TRAIN.EPOCHS=1", "TRAIN.BATCH_SIZE=8",
         "TRAIN.GLOBAL_BATCH=8", "TRAIN.NUM_WORKERS=0"),
    "ssql": (f"MODEL.ARCH={NET}",),
    "us3l": (f"MODEL.ARCH=us_{NET}", "MODEL.OFA.CALIBRATION_PICTURES=8"),
    "us3l ssl": ("TRAIN.EPOCHS=4",),  # in fewer not all widths are trained
    "us3l distill": (f"DISTILL.TEACHER_ARCH=us_{NET}", "DISTILL.TEACHER_DIM=64", "DISTILL.TEACHER_HIDDEN_DIM=64",
                     "SSL.SETTING.DIM=64", "SSL.SETTING.MOCO_K=8"),
    "us3l slimmable": (f"MODEL.ARCH=s_{NET}",),
}  # fmt: skip


def name_of(given: dict[str, Any]) -> str:
    """The kind of data that a shipped config is for, such as cifar."""
    return Path(given.get("name", "")).parent.name


def small(program: str, command: str, given: dict[str, Any], stated: set[str]) -> None:
    """Make the options of a line those of a small run."""
    named = ("", program, f"{program} {command}")
    for few in (FEW, *(OWN.get(name, {}) for name in named)):
        given.update({key: value for key, value in few.items() if key in given and (key != "arch" or given[key])})
    folder = name_of(given) in ("folder", "imagenet")
    if "overrides" in given:
        own = ["TRAIN.DATASET=folder"] * folder + ["TRAIN.DATASET=cifar10"] * (name_of(given) == "cifar")
        texts = (*own, *given["overrides"], *(text for name in named for text in KEYS.get(name, ())))
        given["overrides"] = tuple("=".join(pair) for pair in dict(text.split("=", 1) for text in texts).items())
    if "data" not in stated and (folder or (command == "sweep" and not given["dataset"] and program != "sqakd")):
        given["data"] = Path("FOLDER")


def run(words: list[str]) -> None:
    """One line."""
    program, name, *rest = words
    command = programs()[program].commands[name]
    context = command.make_context(f"{program} {name}", rest)
    sources = {key: context.get_parameter_source(key) for key in context.params}
    small(program, name, context.params, {key for key, at in sources.items() if at is ParameterSource.COMMANDLINE})
    print("$", *words)
    with context:
        assert not command.invoke(context)
    output = context.params.get("output")
    assert output is None or output.exists()


def link(name: str, target: str | Path) -> None:
    Path(name).symlink_to(target)


def start_core() -> None:
    run(shlex.split("bsq train -d digits -c RUN…"))
    link("FILE", f"RUN…/{LAST}")


def start_s2bnn() -> None:
    torch.save({"state_dict": create_model(NET, num_classes=0).state_dict()}, "T")
    run(shlex.split("s2bnn main_moco FOLDER --method distillation --step 2 --teacher-path T --output d2"))
    link("FILE", f"d2/{LAST}")


def start_sqakd() -> None:
    for name, arch, classes in (("FP.pth.tar", "resnet18", 20), ("VGG.pth", "cifar_vgg8", 10)):
        torch.save({"state_dict": create_model(arch, num_classes=classes).state_dict()}, name)
    run(shlex.split("sqakd recipe run_cifar10_resnet20/fp"))


def start_ssql() -> None:
    start_configs("ssql", "BASE_CONFIG: configs/base/digits.yaml\nSSL: {TYPE: SimSiam}\n")


def start_us3l() -> None:
    start_configs("us3l", "BASE_CONFIG: configs/base/digits.yaml\n")


def start_configs(program: str, mine: str) -> None:
    Path("MINE.yaml").write_text(mine)
    run([program, "ssl", "--config", "MINE.yaml", "--output", "FIRST"])
    link("CHECKPOINT", f"FIRST/{LAST}")
    link("backbone.safetensors", "FIRST/backbone.safetensors")


START: dict[str, Callable[[], None]] = {
    ".": lambda: None, "bsq": lambda: None, "core": start_core, "s2bnn": start_s2bnn, "sqakd": start_sqakd,
    "ssql": start_ssql, "us3l": start_us3l,
}  # fmt: skip


def test_all_readmes_are_here() -> None:
    assert {ROOT / folder for folder in START} == {ROOT, *(readme.parent for readme in README)}
    lines = [line for folder in START for line in shell_lines(ROOT / folder / "README.md")]
    assert [start for start in NOT_RUN if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.parametrize("folder", START)
def test_the_lines_of_a_readme(
    folder: str, cifar10_root: Path, tiny_imagenet_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for label, name in enumerate(("nought", "one")):
        for number, at in enumerate((digits.target == label).nonzero()[0][:15]):
            place = Path("pictures", "train" if number < 10 else "val", name)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[at] * 15).astype("uint8")).resize((40, 36)).save(place / f"{number}.png")
    for name in ("FOLDER", "PICTURES", "PICTURES…", "…"):
        link(name, "pictures")
    for name in ("DATA", "data"):
        link(name, cifar10_root)
    link("tiny-imagenet-200", tiny_imagenet_root)
    monkeypatch.setattr("s2bnn.teacher.create_pretrained", lambda arch, classes, **_: create_model(arch, num_classes=0))
    START[folder]()
    for line in shell_lines(ROOT / folder / "README.md"):
        if not line.startswith(tuple(NOT_RUN)):
            words = command_of(line, set(programs()))
            assert words, f"{line}: no program of ours, and not in NOT_RUN"
            run(words)
