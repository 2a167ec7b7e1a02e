"""The recipes: every experiment of the authors' scripts on these nets, each a command line that this program takes."""

import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result

from lowbit.metrics import read_metrics
from lowbit.models.create import create_model
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


SHORT = ("--dataset", "digits", "--limit-train", 16, "--limit-eval", 10, "--calibration", 8, "--max-steps", 2,
         "--print-freq", 1, "-j", 0)  # fmt: skip
SMALL = "cifar_resnet8_1x1"
OWN = {  # recipes that run with their own net, one of each net at least. False: heavy
    "run_cifar10_resnet20/EWGS+SQAKD_W2A2": True, "run_cifar10_vgg8/EWGS_W2A2": False,
    "run_cifar100_resnet32/EWGS+SQAKD_W4A4": False, "run_cifar100_vgg13/EWGS_W1A1": False,
    "run_tinyimagenet_resnet18/pact_a4w4_kd": False, "run_tinyimagenet_vgg11/lsq_a8w8_kd": False,
    "run_tinyimagenet_mobilenetV2/pact_a4w4_kd": False, "run_tinyimagenet_shufflenetv2/dorefa_a8w8_kd": True,
    "run_tinyimagenet_squeezenet/lsq_a4w4": True, "run_cifar10_resnet20_EWGS+KDs/EWGS+AT_W2A2": True,
    "run_cifar100_vgg13_EWGS+KDs/EWGS+CKTF_W1A1": False,
}  # fmt: skip


def kind_of(name: str) -> tuple[Any, ...]:
    """What a recipe computes but for its net and constants; one of each kind runs with SMALL."""
    own = options_of(command_of(name))
    return own.command, own.quantizer, own.wbits if own.distill in ("", "kd") else 0, own.distill, own.start is None


RUN = {*{kind_of(name): name for name in reversed(names())}.values(), *OWN}


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if OWN.get(n) else pytest.mark.heavy) for n in sorted(RUN)])
def test_recipes_run(
    sqakd: Callable[..., Result], float_weights: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    """Two steps on the digits, from drawn weights; the plan first, which writes nothing."""
    own = options_of(command_of(name))
    arch = own.arch if name in OWN else SMALL
    given = ["--arch", arch, "--batch-size" if own.command == "main" else "--batch_size", 8]
    given += ["--image-size", 32] if arch == "tiny_squeezenet" else []
    given += ["--pretrain_path", float_weights(arch)] if own.start else []
    given += ["--teacher_arch", arch, "--teacher_path", float_weights(arch)] if own.distill else []
    output = "--save_root_path" if own.command == "main" else "--log_dir"
    line = ("recipe", name, *SHORT, *given, output, tmp_path / "run")
    plan = sqakd(*line, "--dry-run").stdout
    assert f"labels: {'read' if own.reads_labels else 'not read'}" in plan and not (tmp_path / "run").exists()
    sqakd(*line)
    steps = [step for step in read_metrics(tmp_path / "run/metrics.jsonl") if step["event"] == "step"]
    assert [math.isfinite(step["loss"]) for step in steps] == [True, True]
    first = bool(own.distill) and own.method.two_stages
    parts = {"kl": own.kd_alpha > 0, "ce": own.kd_gamma > 0 and not first, "feature_loss": own.kd_beta > 0}
    assert {name: name in steps[0] for name in parts} == parts


def test_every_net_runs() -> None:
    assert {options_of(command_of(name)).arch for name in OWN} == {options_of(command_of(n)).arch for n in names()}
