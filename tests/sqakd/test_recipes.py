"""The recipes: every experiment of the authors' scripts on these nets, each a command line that this program takes."""

import math
import re
import shutil
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.metrics import read_metrics
from lowbit.models.create import create_model
from sqakd import load
from sqakd.cli import cli
from sqakd.commands.recipe import command_of, listed, names
from sqakd.options import TrainOptions

SAME = ("batch_size", "lr_m", "lr_q", "weight_decay", "epochs", "kd_alpha", "kd_gamma", "kd_beta", "kd_theta", "nce_k",
        "init_epochs", "smoothing", "distill")  # fmt: skip
SAID = dict(line.split(": ", 1) for line in listed())


def options_of(line: list[str]) -> TrainOptions:
    """What a command line comes to."""
    found: list[Any] = []
    command: Any = cli.commands[line[0]]
    context = command.make_context(line[0], list(line[1:]))
    original, body = command.callback, context.params
    import sqakd.cli as module

    run, module._run = module._run, lambda options, own, default=None: found.append(own)
    try:
        original(**body)
    finally:
        module._run = run
    return found[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", names())
def test_every_recipe_is_a_command_line(name: str) -> None:
    line = command_of(name)
    own = options_of(line)
    assert own.command == line[0] and bool(own.distill) == ("SQAKD" in name or "KDs" in name or name.endswith("_kd"))
    assert (own.quantizer == "") == name.endswith("/fp") and own.arch.startswith(("cifar_", "tiny_", "resnet18"))
    assert own.hessian_every == (10 if own.quantizer == "ewgs" else 0)
    said = SAID[name]
    assert ("with labels" in said, "without labels" in said) == (own.reads_labels, not own.reads_labels)


def test_labels_are_smoothed_where_no_teacher_is() -> None:
    line, taught = ["main", "D", "--save_root_path", "x"], ["--distill", "--teacher_path", "x", "--gamma", "0.7"]
    lines = (line, [*line, *taught], [*line, *taught, "--smoothing", "0.2"], ["train_fp"])
    assert [options_of(given).smoothing for given in lines] == [0.1, 0.0, 0.2, 0.0]


def test_a_stated_scale_is_kept_as_released() -> None:
    own = options_of(["train_quant", "--released", "--bkwd_scaling_factorW", "0.1"])
    assert (own.quantizer, own.delta_w, own.delta_a, own.hessian_every) == ("ewgs", 0.1, 0.0, 0)
    own = options_of(["train_quant"])
    assert (own.delta_w, own.delta_a, own.hessian_every) == (1e-3, 1e-3, 10)


def test_the_same_as_the_scripts(recorded: Any) -> None:
    """Against the recorded flags of every command, read by the same parser; paths, which they have wrong, excluded."""
    ours = [(name, options_of(command_of(name))) for name in names()]
    known = {"gpu_id", "num_workers", "program", "workers", "loss-scale", "backward_method"}
    matched = set()
    for key, flags in recorded.json("configs").items():
        if "program" not in flags or "gamma0.7_alpha0.3" in key:  # named after labels that its flags leave out
            continue
        line = [flags["program"].removesuffix(".py")]
        for flag, value in flags.items():
            if flag not in known:
                line += [f"-{flag}" if len(flag) == 1 else f"--{flag}", str(value)]
        if line[0] == "main" and "not-quant" not in flags:  # what they edited into get_config.py
            quantizer, bits = re.findall(r"pact|lsq|dorefa", key)[0], re.findall(r"a(\d)w\d", key)[0]
            line += ["--quantizer", quantizer, "--wbits", bits, "--abits", bits]
        theirs = options_of(line)
        fields = (*SAME, "arch", "quantizer", "wbits", "abits")
        found = {name for name, own in ours if all(getattr(own, f) == getattr(theirs, f) for f in fields)
                 and (own.start is None) == (theirs.start is None)}  # fmt: skip
        assert found, (key, theirs)
        matched |= found
    assert len(matched) > 65


def test_a_recipe_is_printed_and_run(sqakd: Callable[..., Result]) -> None:
    lines = sqakd("recipe").stdout.splitlines()
    assert [line.partition(": ")[0] for line in lines] == names() and len(lines) == 115
    name = "run_cifar10_resnet20/EWGS+SQAKD_W2A2"
    said = sqakd("recipe", name, "--print", "--epochs", 3).stdout
    assert said.startswith("sqakd train_quant --arch resnet20_quant") and "--epochs 3" in said and "1200" not in said
    tried = ("--dataset", "digits", "--limit-train", 80, "--batch_size", 20, "--dry-run")
    assert "steps: 4,800" in sqakd("recipe", "run_cifar10_resnet20/fp", *tried).stdout
    assert "sqakd recipe lists them all" in sqakd("recipe", "run_cifar10_resnet20/W2A2", code=2).stderr


@pytest.fixture(scope="session")
def float_weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A file of drawn weights of a net of ten classes, as anybody saves it."""

    @cache
    def path(arch: str) -> Path:
        torch.manual_seed(0)
        file = tmp_path_factory.mktemp("float") / "net.pth"
        torch.save(create_model(arch, num_classes=10).state_dict(), file)
        return file

    return path


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of what is in a file, which is read once: drawing a net and filling it takes longer than two steps."""
    monkeypatch.setattr(load, "open_net", lambda *given: deepcopy(OPENED(*given)))


OPENED = cache(load.open_net)
SHORT = ("--dataset", "digits", "--limit-train", 12, "--limit-eval", 10, "--calibration", 4, "--max-steps", 2,
         "--print-freq", 1, "-j", 0)  # fmt: skip
ORDINARY = ("run_cifar10_resnet20/EWGS+SQAKD_W2A2", "run_tinyimagenet_shufflenetv2/dorefa_a8w8_kd",
            "run_tinyimagenet_squeezenet/lsq_a4w4", "run_cifar10_resnet20_EWGS+KDs/EWGS+AT_W2A2")  # fmt: skip
EACH = [pytest.param(name, marks=() if name in ORDINARY else pytest.mark.heavy) for name in names()]


@pytest.mark.usefixtures("read_once")
@pytest.mark.parametrize("name", EACH)
def test_recipes_run(
    sqakd: Callable[..., Result], float_weights: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Two steps of four digits with its own net, from drawn weights; the plan first, which writes nothing."""
    own, run = options_of(command_of(name)), tmp_path / "run"
    given = ["--batch-size" if own.command == "main" else "--batch_size", 4]
    side = 32 if own.arch == "tiny_squeezenet" else 16  # MobileNet-V2's maps of 8 pixels are constant: it diverges
    given += ["--image-size", side] if own.command == "main" else []
    given += ["--pretrain_path", float_weights(own.arch)] if own.start else []
    given += ["--teacher_path", float_weights(own.arch)] if own.distill else []
    line = ("recipe", name, *SHORT, *given, "--save_root_path" if own.command == "main" else "--log_dir", run)
    plan = sqakd(*line, "--dry-run").stdout
    assert f"labels: {'read' if own.reads_labels else 'not read'}" in plan and not run.exists()
    sqakd(*line)
    steps = [step for step in read_metrics(run / "metrics.jsonl") if step["event"] == "step"]
    assert [math.isfinite(step["loss"]) for step in steps] == [True, True]
    first = bool(own.distill) and own.method.two_stages
    parts = {"kl": own.kd_alpha > 0, "ce": own.kd_gamma > 0 and not first, "feature_loss": own.kd_beta > 0}
    assert {name: name in steps[0] for name in parts} == parts
    shutil.rmtree(run)  # all together they are 10 GB
