"""The recipes: every experiment of the authors' scripts on these nets, each a command line that this program takes."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import Result

from sqakd.cli import cli
from sqakd.commands.recipe import command_of, names
from sqakd.options import TrainOptions

SAME = ("batch_size", "lr_m", "lr_q", "weight_decay", "epochs", "kd_alpha", "kd_gamma", "smoothing", "distill")


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
    assert own.command == line[0] and own.distill == ("SQAKD" in name or name.endswith("_kd"))
    assert (own.quantizer == "") == name.endswith("/fp") and own.arch.startswith(("cifar_", "tiny_", "resnet18"))
    assert own.hessian_every == (10 if "EWGS" in name else 0)


def test_the_same_as_the_scripts(recorded: Any) -> None:
    """Against the recorded flags of every command, read by the same parser; paths, which they have wrong, excluded."""
    ours = [(name, options_of(command_of(name))) for name in names()]
    known = {"gpu_id", "num_workers", "program", "workers", "loss-scale", "backward_method"}
    matched = set()
    for key, flags in recorded.json("configs").items():
        if "gamma0.7_alpha0.3" in key:  # named after labels that its flags leave out
            continue
        line = [flags["program"].removesuffix(".py")]
        for flag, value in flags.items():
            if flag not in known:
                line += [f"-{flag}" if len(flag) == 1 else f"--{flag}", str(value)]
        if line[0] == "main" and "not-quant" not in flags:  # what they edited into get_config.py
            bits = re.findall(r"a(\d)w\d", key)[0]
            line += ["--quantizer", "pact", "--wbits", bits, "--abits", bits]
        theirs = options_of(line)
        fields = (*SAME, "arch", "quantizer", "wbits", "abits")
        found = {name for name, own in ours if all(getattr(own, f) == getattr(theirs, f) for f in fields)
                 and (own.start is None) == (theirs.start is None)}  # fmt: skip
        assert found, (key, theirs)
        matched |= found
    assert len(matched) > 30


def test_a_recipe_is_printed_and_run(sqakd: Callable[..., Result]) -> None:
    listed = sqakd("recipe").stdout.splitlines()
    assert len(listed) == len(names()) == 62
    name = "run_cifar10_resnet20/EWGS+SQAKD_W2A2"
    said = sqakd("recipe", name, "--print", "--epochs", 3).stdout
    assert said.startswith("sqakd train_quant --arch resnet20_quant") and "--epochs 3" in said and "1200" not in said
    tried = ("--dataset", "digits", "--limit-train", 80, "--batch_size", 20, "--dry-run")
    assert "steps: 4,800" in sqakd("recipe", "run_cifar10_resnet20/fp", *tried).stdout
    assert "was not found" in sqakd("recipe", "run_cifar10_resnet20/W2A2", code=2).stderr
